"""Training a brick on a base: a model of ours or of others, resting or learning along."""

import re

import pytest
import torch
from small_runs import CODEC, Bars, config, quiet, same, weights
from test_interop import save_diffusers

from legodiff import LegoPipeline
from legodiff.config import load_config
from legodiff.model.spec import ForeignSpec
from legodiff.store import read_config
from legodiff.train import loop
from legodiff.train.distributed import World
from legodiff.train.inputs import open_inputs
from legodiff.train.learner import build_learner, build_network

ON_TOP = "model.bricks=[{size: 4, local: 2, depth: 1}]"


def train(settings, run, **options):
    return loop.train(settings, Bars(), CODEC, run, say=quiet, **options)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    run = tmp_path_factory.mktemp("base") / "run"
    train(config("model.bricks=[{size: image, local: 4, depth: 1}]"), run)
    return run


def on(base, *changes):
    return config(f"model.base={base}", ON_TOP, *changes)


def inside(run):
    return {
        name.removeprefix("bricks.0.network."): tensor
        for name, tensor in weights(run).items()
        if name.startswith("bricks.0.network.")
    }


def test_a_resting_base_stays_and_skipping_gives_it_back(base, tmp_path):
    pipe = train(on(base, "train.bricks=[1]"), tmp_path / "run")
    assert same(inside(tmp_path / "run"), weights(base))
    before = LegoPipeline.from_pretrained(base).stack
    noisy, sigma = torch.randn(2, 1, 16, 16), torch.tensor([0.3, 3.0])
    labels = torch.tensor([0, 2])
    with torch.no_grad():
        expected = before(noisy, sigma, labels)
        assert torch.equal(pipe.stack(noisy, sigma, labels, bricks=(0,)), expected)
        assert not torch.allclose(pipe.stack(noisy, sigma, labels), expected)


def test_before_training_the_stack_is_the_base(base, tmp_path):
    settings = on(base, "train.bricks=[1]", "train.images=16", "train.learning_rate=1e-30")
    pipe = train(settings, tmp_path / "run")
    before = LegoPipeline.from_pretrained(base).stack
    noisy, sigma = torch.randn(2, 1, 16, 16), torch.tensor([0.3, 3.0])
    with torch.no_grad():
        assert torch.equal(pipe.stack(noisy, sigma), before(noisy, sigma))


def test_a_run_needs_its_base_no_more(base, tmp_path):
    run, copy = tmp_path / "run", tmp_path / "copy"
    LegoPipeline.from_pretrained(base).save_pretrained(copy)
    settings = on(copy)
    train(
        settings.model_copy(update={"train": settings.train.model_copy(update={"images": 32})}), run
    )
    for path in copy.iterdir():
        path.unlink()
    saved = read_config(run)["run"]
    assert "base" not in saved["model"]
    train(settings, run, resume=True)
    again = LegoPipeline.from_pretrained(run)
    assert isinstance(again.stack.spec.bricks[0], ForeignSpec)
    assert not same(inside(run), weights(base))  # all bricks learnt


def test_the_codec_is_the_bases(base):
    _, codec = open_inputs(on(base), None, World())
    assert codec == LegoPipeline.from_pretrained(base).codec


def test_rates_of_the_bricks(base):
    settings = on(base, "train.brick_rates=[0.1, 1.0]")
    network = build_network(settings.model.spec(1, 2), 0)
    learner = build_learner(network, CODEC, settings.train, World())
    low, high = learner.optimizer.param_groups
    assert (low["factor"], high["factor"]) == (0.1, 1.0)
    assert {id(p) for p in low["params"]} == {id(p) for p in network.bricks[0].parameters()}
    shared = [*network.noise_embedding.parameters(), *network.class_embedding.parameters()]
    assert {id(p) for p in shared} <= {id(p) for p in high["params"]}
    total = sum(1 for _ in network.parameters())
    assert len(low["params"]) + len(high["params"]) == total
    with pytest.raises(ValueError, match="brick_rates has 1 factors for 2 bricks"):
        build_learner(network, CODEC, on(base, "train.brick_rates=[1.0]").train, World())
    with pytest.raises(ValueError, match="brick_rates are for runs in which all bricks learn"):
        on(base, "train.brick_rates=[1, 1]", "train.bricks=[1]")


def test_a_slow_base_moves_less(base, tmp_path):
    moved = {}
    for name, rates in (("slow", "[0.01, 1.0]"), ("fast", "[1.0, 1.0]")):
        train(on(base, f"train.brick_rates={rates}"), tmp_path / name)
        new, old = inside(tmp_path / name), weights(base)
        moved[name] = sum((new[key] - old[key]).square().sum() for key in old).sqrt()
    assert 0 < moved["slow"] < 0.1 * moved["fast"]


def test_a_network_of_diffusers_is_a_base(tmp_path):
    from test_foreign import UNET

    config_1 = {**UNET, "in_channels": 1, "out_channels": 1}
    save_diffusers(tmp_path / "theirs", config=config_1)
    from legodiff.interop.importing import import_model

    import_model(tmp_path / "theirs").pipe.save_pretrained(tmp_path / "base")
    settings = on(tmp_path / "base", "train.bricks=[1]", "model.width=16", "model.heads=2")
    pipe = train(settings, tmp_path / "run")
    spec = pipe.stack.spec
    assert [str(brick) for brick in spec.bricks] == ["UNet2DModel", "4 (l 2, 1 block)"]
    assert spec.width == 16
    assert same(inside(tmp_path / "run"), inside(tmp_path / "base"))
    rest = [n for n, p in pipe.stack.named_parameters() if n.startswith("bricks.1") and p.any()]
    assert rest


def test_a_base_keeps_its_size(base, tmp_path):
    assert on(base, "model.image_size=[16, 16]") == on(base)
    for change, given, own in (
        ("image_size", "[32, 32]", "[16, 16]"),
        ("sigma_data", "0.25", "0.5"),
    ):
        line = f"model.{change} is {given} and that of the base {base} is {own}; leave it out"
        with pytest.raises(ValueError, match=f"^{re.escape(line)}$"):
            on(base, f"model.{change}={given}")
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(
        f"model: {{base: {base}, bricks: [{{size: 4, local: 2, depth: 1}}]}}\ntrain:\n"
    )
    assert load_config(recipe).train.init == str(base)


def test_a_base_needs_bricks_on_top(base):
    with pytest.raises(ValueError, match=r"needs model\.bricks, those to put on top"):
        config(f"model.base={base}")
    with pytest.raises(ValueError, match="is neither a folder nor a Hub id"):
        config("model.base=nothing", ON_TOP)
