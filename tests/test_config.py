import pytest

from legodiff import preset
from legodiff.config import RunConfig, load_config, recipes


@pytest.mark.parametrize("name", recipes())
def test_every_recipe_is_a_model_that_can_be_built(name, bases):
    config = load_config(name)
    spec = config.model.spec(3, 10, config.train.bricks)
    spec.patch_ratios(config.train.ratio(spec))


def test_changes_reach_every_section(tmp_path):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("model: {preset: tiny-pr-16}\ntrain: {images: 100, learning_rate: 1e-3}\n")
    config = load_config(recipe, ["train.images=200", "model.refine=false", "data.path=digits"])
    assert config.train.images == 200
    assert config.train.learning_rate == 1e-3
    assert not config.model.spec(1, 10).refine
    assert config.model.spec(1, 10) == preset("tiny-pr-16", 1, 10, refine=False)


def test_numbers_in_scientific_notation_are_numbers():
    assert load_config(changes=["model.class_std=1e-1"]).model.spec(1, 0).class_std == 0.1
    assert load_config(changes=["train.learning_rate=3e-4"]).train.learning_rate == 3e-4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("train.imags=3", "train.imags: unknown key; known here: images, batch"),
        ("trian.images=3", "trian: unknown key; known here: model, data, train"),
        ("train.images=many", "train.images is 'many'.*integer"),
        ("train.images=0", "train.images is 0.*greater than or equal to 1"),
        ("train.fill=hope", "train.fill is 'hope'.*'skip', 'clean', 'noise' or 'zero'"),
        ("train.patch_ratio=0", "train.patch_ratio.* is 0.*greater than 0"),
        ("train.learning_rate=-1", "greater than 0"),
        ("train", "write it as section.key=value"),
        ("=3", "write it as section.key=value"),
        ("train.images.more=3", "images is not a section"),
        ("train.images=[", "not a YAML value"),
    ],
)
def test_a_wrong_change_is_one_clear_line(change, message):
    with pytest.raises(ValueError, match=rf"^[^\n]*{message}[^\n]*$"):
        load_config("digits", [change])


def test_empty_sections_are_sections(tmp_path):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("model:\ndata:\ntrain:\n")
    assert load_config(recipe) == RunConfig()
    assert load_config(recipe, options={"data.path": "photos"}).data.path == "photos"
    assert load_config(recipe, ["data=", "data.path=x"]).data.path == "x"


def test_what_is_no_section_is_told_without_options_nobody_gave(tmp_path):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("data: photos\n")
    line = r"^data is not a section of named values, but 'photos'$"
    with pytest.raises(ValueError, match=line):
        load_config(recipe, options={"data.path": "photos"})
    with pytest.raises(ValueError, match=r"^data is 'photos': a section of named values$"):
        load_config(recipe)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["train.brick_rates=[1]"], "train.brick_rates are for runs in which all bricks learn"),
        (["train.brick_dropout=0.1"], "train.brick_dropout needs all bricks to learn; leave "),
    ],
)
def test_settings_that_do_not_go_together_are_named_without_all_the_others(changes, message):
    with pytest.raises(ValueError, match=rf"^{message}[^{{}}\n]*$"):
        load_config("digits", ["train.bricks=[0]", *changes])


@pytest.mark.parametrize(
    ("text", "colour"),
    [("grey", "grey"), ('"#204080"', "#204080"), ("rgb(1, 2, 3)", "rgb(1, 2, 3)")],
)
def test_colours_are_those_that_pil_names(text, colour):
    config = load_config(changes=[f"data.alpha={text}"])
    assert config.data.alpha == colour
    assert RunConfig.model_validate_json(config.model_dump_json()) == config


@pytest.mark.parametrize(
    ("text", "value"), [("#204080", "None"), ("gray12", "'gray12'"), ("3", "3")]
)
def test_other_colours_are_told_how_to_quote(text, value):
    line = rf"^data\.alpha is {value}: name a colour: [^\n]*--set 'data\.alpha=\"#204080\"'[^\n]*$"
    with pytest.raises(ValueError, match=line):
        load_config(changes=[f"data.alpha={text}"])


def test_several_mistakes_are_a_line_each():
    with pytest.raises(ValueError, match=r"^train\.images [^\n]*\ntrain\.batch [^\n]*$"):
        load_config("digits", ["train.images=-1", "train.batch=-1"])


def test_unknown_model_fields_and_presets_are_refused():
    with pytest.raises(ValueError, match="unknown key 'depht'"):
        load_config(changes=["model.depht=3"]).model.spec(1, 10)
    with pytest.raises(ValueError, match="unknown preset"):
        load_config(changes=["model.preset=lego-m"]).model.spec(1, 10)


@pytest.mark.parametrize("text", ["- a\n- b\n", "a: [", "\x00"])
def test_files_that_are_no_recipe_are_refused(tmp_path, text):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(text)
    with pytest.raises(ValueError, match=r"^[^\n]*recipe\.yaml[^\n]*$"):
        load_config(recipe)
    with pytest.raises(ValueError, match="there is no recipe"):
        load_config(tmp_path / "absent.yaml")


def test_the_patch_ratio_follows_the_top_brick():
    settings = RunConfig().train
    assert settings.ratio(preset("lego-s-pg-64")) == 1.0
    assert settings.ratio(preset("lego-s-pr-64")) == 0.5
    for text, value in (("0.25", 0.25), ("[1, 0.5, 0.25]", (1.0, 0.5, 0.25))):
        settings = load_config(changes=[f"train.patch_ratio={text}"]).train
        assert settings.ratio(preset("lego-s-pg-64")) == value


def test_a_config_survives_json():
    config = load_config("digits", ["model.objective=ddpm", "train.seed=4"])
    assert RunConfig.model_validate_json(config.model_dump_json()) == config
