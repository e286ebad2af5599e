import json
from dataclasses import replace
from importlib import import_module
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import judges
from PIL import Image
from test_demo import TINY, stopping
from test_pipeline import pipeline

from legodiff import LegoPipeline, SkipPlan, config
from legodiff.codec import LatentCodec
from legodiff.config import load_config
from legodiff.evaluate import digits
from legodiff.model.cost import subset_flops
from legodiff.model.presets import preset
from legodiff.reproduce import convergence, experiments, quality, runs, skipping, wide
from legodiff.reproduce.effort import PEAK, SHARE, efforts
from legodiff.reproduce.experiment import Experiment, Model, Scale
from legodiff.reproduce.models import bricks, on_digits, patch_bricks, refined, shared_out
from legodiff.reproduce.pages import spread, table
from legodiff.sampling import Method
from legodiff.store import read_weights
from legodiff.train import loop
from legodiff.train.checkpoint import list_checkpoints
from legodiff.train.estimate import training_flops
from legodiff.vae import VaeSpec

ALL = experiments.EXPERIMENTS
FEW = ("train.images=32", "train.batch=16", "train.picture_images=0")
TWO = tuple(
    Model(name, "digits", (f"model.preset=tiny-{name.lower()}-16", *FEW)) for name in ("PG", "PR")
)
SMALL = Scale("digits", TWO, samples=20, steps=2)
PICTURES = replace(
    SMALL,
    data="photographs",
    features="pooled",
    models=tuple(replace(model, recipe="images-32") for model in TWO),
    image=(3, 2),
)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(digits, "DigitJudges", judges)


@pytest.fixture
def run(call, tmp_path, monkeypatch):
    """Reproduces an experiment of one kind with tiny models; gives its page and folder."""

    def run(kind, scale, *words, **more):
        experiment = Experiment("Tiny", kind, scale, scale, **more)
        monkeypatch.setitem(ALL, "tiny", experiment)
        code, out, err = call("reproduce", "tiny", "--out", tmp_path / "out", *words)
        assert code == 0, err
        folder = tmp_path / "out" / "small" / "tiny"
        assert (folder / "page.md").read_text() in out
        return (folder / "page.md").read_text(), folder

    return run


def rows(folder):
    return json.loads((folder / "rows.json").read_text())


@pytest.mark.parametrize("name", ALL)
def test_every_experiment_can_be_begun_at_both_scales(name):
    for scale in (ALL[name].small, ALL[name].paper):
        for model in scale.models:
            settings = load_config(model.recipe, model.changes)
            settings.model.spec(*scale.image)
        names = [model.name for model in scale.models]
        assert len(set(names)) == len(names)
        assert {model.base for model in scale.models} <= {None, *names}
        assert {model.after for model in scale.models} <= {None, *names}


@pytest.mark.parametrize("scale", ["small", "paper"])
def test_sizes_of_stacks_are_told_at_both_scales(scale, call, tmp_path):
    code, out, err = call("reproduce", "table6", "--scale", scale, "--out", tmp_path)
    assert (code, err) == (0, "")
    assert "| **lego-xl-pg-32** | all |" in out


def test_only_the_first_process_leaves_files(call, tmp_path, monkeypatch):
    monkeypatch.setattr("legodiff.train.distributed.World.leads", False)
    assert call("reproduce", "table5", "--out", tmp_path / "out")[0] == 0
    assert not (tmp_path / "out").exists()


def test_every_table_and_figure_is_there():
    wanted = {f"table{number}" for number in (1, 2, 3, 4, 5, 7)}
    wanted |= {f"figure{number}" for number in (2, 4, 5, 6, 7, 8, 9, 10, 11)}
    assert wanted | {"table3-512", "patch-ratio", "canvas", "second-data"} == ALL.keys()
    assert experiments.SAME == {"table6": "table5"}


def test_what_the_paper_prints_stands_beside_the_models():
    for name, experiment in ALL.items():
        if experiment.kind in ("quality", "canvases") and experiment.printed:
            for scale in (experiment.small, experiment.paper):
                known = [model for model in scale.models if experiment.known(model.name)]
                assert len(known) >= 3, name
    assert ALL["table1"].known("LEGO-S-PG") == ALL["table1"].known("LEGO-PG")
    assert ALL["table1"].known("LEGO") == ""


def blocks(model):
    return [
        (b.size, b.depth) for b in load_config(model.recipe, model.changes).model.spec(1, 10).bricks
    ]


def test_figures_10_and_11_share_out_the_same_blocks():
    for total, step in ((6, 1), (12, 2)):
        models = shared_out(on_digits, total, step)
        assert [sum(depth for _, depth in blocks(model)) for model in models] == [total] * 7
        assert [model.x for model in models] == pytest.approx([n / 6 for n in range(7)])
        assert [len(blocks(model)) for model in models] == [1, 2, 2, 2, 2, 2, 1]
    models = patch_bricks(on_digits, (2, 4, 8), 1, ("image", 2, 3))
    assert all(sum(depth for _, depth in blocks(model)) == 9 for model in models)
    sizes = ["2", "4", "8", "2+4", "2+8", "4+8", "2+4+8"]
    assert [model.name for model in models[:7]] == sizes
    assert blocks(models[6]) == [(2, 2), (4, 2), (8, 2), ("image", 3)]
    assert [blocks(model)[:-1] for model in models[7:]] == [
        [(8, 6)],
        [(2, 2), (8, 4)],
        [(2, 4), (8, 2)],
        [(2, 6)],
    ]


def test_quality_is_measured_shown_and_set_beside_the_paper(run):
    scale = replace(SMALL, guidances=(1.0, 1.5))
    page, folder = run("quality", scale, "--seeds", "0-1", printed={"PG, X": "FID 2", "U": "FID 3"})
    found = rows(folder)
    assert [(row["model"], row["seed"], row["guidance"]) for row in found] == [
        (model, seed, guidance)
        for model in ("PG", "PR")
        for seed in (0, 1)
        for guidance in (1.0, 1.5)
    ]
    assert len({row["FD-digits-20(train)"] for row in found}) == 4  # guidance: nothing learnt yet
    assert found[1]["drawn flops"] == 2 * found[0]["drawn flops"]
    lines = [line for line in page.splitlines() if line.startswith("| ")]
    assert lines[2].startswith("| PG | 1 |")
    assert lines[2].endswith("| FID 2 |")
    assert lines[-1].startswith("| U |")
    assert " ± " in lines[2]
    for name in ("drawn.png", "rows.csv", "metrics/metrics.json"):
        assert (folder / name).is_file()
    assert not (folder / "figure.png").exists()


def test_models_are_trained_once_and_found_again(run, monkeypatch):
    _, folder = run("quality", SMALL)
    first = rows(folder)
    monkeypatch.setattr(runs, "train", None)  # would fail
    _, folder = run("quality", SMALL)
    assert [row["FD-digits-20(train)"] for row in rows(folder)] == [
        row["FD-digits-20(train)"] for row in first
    ]
    kept = sorted(path.name[:5] for path in (folder.parent / "models").iterdir())
    assert kept == ["pg-0-", "pr-0-"]


def test_what_was_stopped_is_not_judged_and_goes_on(call, run, tmp_path, monkeypatch):
    scale = replace(SMALL, models=TWO[:1])
    monkeypatch.setitem(ALL, "tiny", Experiment("Tiny", "quality", scale, scale))
    with monkeypatch.context() as patch:
        patch.setattr(loop, "stop_asked", stopping)
        code, _, err = call("reproduce", "tiny", "--out", tmp_path / "out")
        assert (code, err) == (130, "")
    out = tmp_path / "out" / "small"
    assert not (out / "tiny").exists()
    (stopped,) = (out / "models").iterdir()
    assert [int(path.name) for path in list_checkpoints(stopped)] == [16]
    _, folder = run("quality", scale)
    assert [int(path.name) for path in list_checkpoints(stopped)][-1] == 32
    seconds = [row["training seconds"] for row in rows(folder)]
    assert seconds[0] == runs.training_seconds(stopped) > 0

    stopped = stopped.rename(tmp_path / "went-on")
    run("quality", scale)  # and now without a stop
    (calm,) = (out / "models").iterdir()
    one, other = (read_weights(folder / "model.safetensors") for folder in (calm, stopped))
    assert all(one[name].equal(other[name]) for name in one)


def test_weights_that_were_not_written_are_not_taken_for_those_of_the_end(run, monkeypatch):
    """Of a run that was killed after its last checkpoint and before the weights beside it."""
    scale = replace(SMALL, models=TWO[:1])
    _, folder = run("quality", scale)
    (made,) = (folder.parent / "models").iterdir()
    first = rows(folder)
    (made / "model.safetensors").unlink()
    _, folder = run("quality", scale)
    assert rows(folder) == first


def test_seconds_of_training_are_those_of_all_calls(tmp_path):
    lines = [(10, 5.0), (40, 10.0), (41, 0.0)]  # the last one slower than a log can tell
    text = "".join(json.dumps({"images": n, "images_per_second": r}) + "\n" for n, r in lines)
    (tmp_path / "log.jsonl").write_text(text)
    assert runs.training_seconds(tmp_path) == pytest.approx(2 + 3 + 20)


def test_a_brick_on_a_base_that_rests_leaves_it_as_it_was(run):
    base = Model("base", "digits", (bricks(("image", 4, 1)), *FEW))
    _, folder = run("quality", replace(SMALL, models=refined(base, (4, 2, 1), *FEW)))
    found = {row["model"]: row for row in rows(folder)}
    assert found["base (frozen) + LEGO-PR"]["parameters"] > found["base"]["parameters"]
    assert found["base, trained on"]["parameters"] == found["base"]["parameters"]
    assert len({row["FD-digits-20(train)"] for row in found.values()}) == 4

    models = folder.parent / "models"
    names = ("base-0-", "base-frozen-lego-pr-0-", "base-unfrozen-lego-pr-0-", "base-trained-on-0-")
    weights = [read_weights(next(models.glob(f"{name}*")) / "model.safetensors") for name in names]
    name = "bricks.0.blocks.0.attention.qkv.weight"
    same = [next(w[k] for k in w if k.endswith(name)).equal(weights[0][name]) for w in weights[1:]]
    assert same == [True, False, False]


def test_a_figure_is_drawn_where_models_have_a_place_on_an_axis(run):
    models = shared_out(lambda n, *b, changes, x: Model(n, "digits", (bricks(*b), *FEW), x), 2, 1)
    page, folder = run("quality", replace(SMALL, models=models, more={"axis": "share"}))
    assert "![figure](figure.png)" in page
    assert (folder / "figure.png").stat().st_size > 5000


def test_skipping_costs_less_at_every_share(run):
    _, folder = run("skipping", replace(SMALL, models=TWO[:1], more={"shares": (0.0, 0.5, 1.0)}))
    found = rows(folder)
    assert [row["side"] for row in found] == ["low noise"] * 3 + ["high noise"] * 3
    for start in (0, 3):
        costs = [row["drawn flops"] for row in found[start : start + 3]]
        assert costs == sorted(costs, reverse=True)
        assert len(set(costs)) == 3
    assert found[0]["FD-digits-20(train)"] == found[3]["FD-digits-20(train)"]  # nothing is skipped
    scale = replace(SMALL, models=TWO[:1], more={"shares": (0.0, 0.5, 1.0)})
    drawn = [found[number]["drawn flops"] for number in (0, 1, 2, 4)]  # the others are the same
    assert efforts(scale, "skipping")[0].drawing == sum(drawn) * scale.samples
    assert (folder / "figure.png").is_file()


def test_what_was_judged_is_found_again(run, monkeypatch):
    scale = replace(SMALL, models=TWO[:1], more={"shares": (0.0, 0.5)})
    _, folder = run("skipping", scale)
    before = rows(folder)
    (folder / "rows.json").unlink()
    calls = []
    drawn = quality.drawn_images
    monkeypatch.setattr(quality, "drawn_images", lambda *a: calls.append(a) or drawn(*a))
    run("skipping", replace(scale, more={"shares": (0.0, 0.5, 1.0)}))
    assert len(calls) == 1  # without the top brick: the same on both sides
    for one, other in zip(before, (row for row in rows(folder) if row["share"] < 1), strict=True):
        own, again = (dict(row) | {"milliseconds": 0} for row in (one, other))
        assert own == again
    run("skipping", replace(scale, samples=19, more={"shares": (0.0,)}))
    assert len(calls) == 2


def test_time_is_that_of_the_evaluations(model, monkeypatch):
    pipe = LegoPipeline.from_pretrained(model)
    monkeypatch.setattr(skipping, "alternate", lambda *_, device: [[3.0, 5.0, 4.0], [1.0] * 3])
    time = skipping.milliseconds(pipe, 2)
    sigmas = pipe.sampling.sigmas(4)
    full = Method(SkipPlan.full(3), 4)
    assert time(full) == 7 * 4.0
    assert time(replace(full, guidance=1.5)) == 14 * 4.0
    half = replace(full, plan=SkipPlan.skip_high_noise(3, 0.5, sigmas))
    levels = half.levels(pipe.sampling)
    without = sum(half.plan.bricks(level) == (0, 1) for level in levels)
    assert 0 < without < 7
    assert time(half) == without * 1.0 + (7 - without) * 4.0


def test_convergence_goes_on_with_one_training(run, monkeypatch):
    monkeypatch.setattr(convergence, "STAGES", 3)
    _, folder = run("convergence", replace(SMALL, models=TWO[:1]), "--images", 64)
    found = rows(folder)
    assert [row["images"] for row in found] == [16, 32, 64]
    costs = [row["training flops"] / row["images"] for row in found]
    assert costs == pytest.approx([costs[0]] * 3)
    seconds = [row["training seconds"] for row in found]
    assert seconds == sorted(seconds)


def test_convergence_that_was_broken_off_goes_on(run, call, tmp_path, monkeypatch):
    monkeypatch.setattr(convergence, "STAGES", 3)
    scale = replace(SMALL, models=TWO[:1])
    _, folder = run("convergence", scale, "--images", 64)
    whole = rows(folder)
    folder.parent.rename(tmp_path / "whole")

    stages, trained = [], convergence.train_on

    def broken(config, *more):
        stages.append(config.train.images)
        if len(stages) == 3:
            monkeypatch.setattr(loop, "stop_asked", stopping)
        return trained(config, *more)

    monkeypatch.setattr(convergence, "train_on", broken)
    with monkeypatch.context() as patch:
        patch.setattr(loop, "stop_asked", loop.stop_asked)  # put back at the end
        assert call("reproduce", "tiny", "--images", 64, "--out", tmp_path / "out")[0] == 130
    assert stages == [16, 32, 64]
    _, folder = run("convergence", scale, "--images", 64)
    assert stages == [16, 32, 64, 64]  # those before are known
    for one, other in zip(rows(folder), whole, strict=True):
        assert one | {"training seconds": 0} == other | {"training seconds": 0}
    run("convergence", scale, "--images", 64)
    assert len(stages) == 4
    run("convergence", replace(scale, samples=19), "--images", 64)
    assert stages[4:] == [16, 32, 64]  # judged in another way, its first stages are gone


def test_refinement_shows_every_brick(run):
    page, folder = run("refinement", SMALL)
    assert page.count("![") == 2
    assert (folder / "PG.png").is_file()


def test_canvases_are_compared_crop_by_crop(run):
    more = {"perceptual": "gradients", "canvas": (32, 48), "canvases": 2, "sides": (16,), "real": 9}
    page, folder = run("canvases", replace(PICTURES, models=PICTURES.models[1:], more=more))
    found = rows(folder)
    cells = [
        f"PD-gradients-{way}-16({to} of 9)"
        for way in ("grid", "random")
        for to in ("nearest", "mean")
    ]
    assert [(row["windows"], row["cell"]) for row in found] == [
        (way, cell) for way in ("stride 7, as the paper", "shifted") for cell in cells
    ]
    assert {row["crops"] for row in found} == {12}
    assert all(0 < near["mean"] < far["mean"] for near, far in zip(*[iter(found)] * 2, strict=True))
    assert cells[0] in page


def test_a_wide_canvas_says_what_it_costs(run):
    scale = replace(PICTURES, models=PICTURES.models[1:], more={"canvas": (32, 128)})
    page, folder = run("wide", scale)
    assert "128x32" in page
    assert "memory" not in page  # the most that the process held is that of training
    assert rows(folder)[0]["flops"] == efforts(scale, "wide")[0].drawing > 0


@pytest.mark.parametrize("options", [{}, {"churn": 2.0}])
@pytest.mark.parametrize("steps", [2, 3])
def test_borders_are_those_of_the_windows_that_made_the_image(steps, options):
    """Windows shift from level to level: what is at multiples of their side shows nothing."""
    pipe, size, told = pipeline(), (24, 44), []
    method = Method(SkipPlan.full(3), steps, options=options)
    pipe.render(method, [0], [0], size, on_window=lambda at, _: told.append(at))
    windows = pipe.windows(size)
    last = told[-len(windows.places(windows.drawn(size), 0)) :]
    found = wide.last_borders(pipe, method, size)
    assert found == tuple(
        sorted({at[axis] for at in last if 0 < at[axis] < size[axis]}) for axis in (0, 1)
    )
    assert set(found[1]) != {16, 32}
    assert wide.last_borders(pipe, method, (16, 16)) == ([], [])
    large = LegoPipeline(pipe.stack, LatentCodec(VaeSpec(1, 8), mean=(0.0,), scale=1.0))
    wanted = tuple([8 * place for place in axis] for axis in found)
    assert wide.last_borders(large, method, (24 * 8, 44 * 8)) == wanted
    image = np.add.outer(np.arange(24), np.arange(44))  # a step of 1 everywhere, and larger ones
    for row in found[0]:
        image[row:] += 9
    for column in found[1]:
        image[:, column:] += 9
    seam = wide.seam_of_windows(Image.fromarray(image.astype(np.uint8)), pipe, method)
    assert seam == pytest.approx(10)


def test_sizes_are_those_that_info_counts(run):
    more = {"presets": ["lego-s-pg-64"]}
    page, folder = run("architecture", replace(SMALL, models=(), image=(3, 0), more=more))
    assert rows(folder)[0]["flops"] == pytest.approx(
        subset_flops(preset("lego-s-pg-64", 3, 0), (0, 1, 2), (64, 64)), rel=1e-4
    )
    assert "33.4 M" in page


def test_effort_is_counted_from_the_recipe():
    scale = replace(SMALL, samples=50, steps=250, sampler="ddpm", guidances=(1.0, 1.5))
    found = {one.model: one for one in efforts(scale)}
    settings = load_config("digits", TWO[0].changes)
    spec = settings.model.spec(1, 10)
    one = found["PG"]
    assert one.training == training_flops(spec, settings.train) * 32
    assert one.drawing == subset_flops(spec, (0, 1, 2), (16, 16)) * 50 * 250 * 3
    assert one.hours == pytest.approx((one.training + one.drawing) / (PEAK * SHARE * 3600))
    base, top, *_ = (one.drawing for one in efforts(ALL["table4"].small))
    stack = load_config("digits", [bricks(("image", 4, 2), (4, 2, 1))]).model.spec(1, 10)
    assert top == subset_flops(stack, (0, 1), (16, 16)) * 1000 * 35 > base


def test_effort_counts_what_its_kind_of_experiment_draws():
    one = replace(SMALL, models=TWO[:1])

    def drawing(kind, **changes):
        (found,) = efforts(replace(one, **changes), kind)
        return found.drawing

    plain = drawing("quality")
    assert drawing("quality", guidances=(1.0, 1.5)) == 3 * plain > 0
    assert drawing("convergence") == convergence.STAGES * plain
    assert drawing("refinement") == 0
    more = {"canvas": (256, 384), "canvases": 3}  # of latents: 32x48, in windows of 16x16
    strided, shifted = 4 * 6, 3 * 4  # at 0, 7, 14, 16 ...; side by side on 48x64, with the gap
    every = 3 * (strided + shifted) * plain / one.samples
    assert drawing("canvases", factor=8, more=more) == every


@pytest.mark.parametrize("name", ALL)
def test_every_experiment_says_what_it_draws(name):
    experiment, pipe = ALL[name], pipeline()
    kind = import_module(f"legodiff.reproduce.{experiment.kind}")
    for scale in (experiment.small, experiment.paper):
        found = kind.drawings(scale, pipe)
        assert bool(found) == (experiment.kind not in ("refinement", "architecture"))
        for one in found:
            assert one.images in (scale.samples, 1, scale.more.get("canvases"), 5 * scale.samples)
            assert one.method.steps == scale.steps


def test_at_the_papers_scale_it_says_what_it_needs(call, tmp_path, monkeypatch):
    table = ALL["table3"]
    small = replace(table.paper, models=TWO, image=(1, 10))  # counted sooner
    monkeypatch.setitem(ALL, "table3", replace(table, paper=small))
    code, out, _ = call("reproduce", "table3", "--scale", "paper", "--out", tmp_path)
    assert code == 0
    assert "Data: latents-256, compared with VIRTUAL_imagenet256_labeled.npz" in out
    assert "--scale paper --data latents-256 --reference VIRTUAL" in out
    assert "(the share is an assumption)" in out
    assert not list(tmp_path.iterdir())


def test_with_data_it_begins_at_the_papers_scale(call, tmp_path, monkeypatch):
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "celeba-64-s-pg.yaml").write_text(TINY)
    monkeypatch.setattr(config, "RECIPES", tmp_path / "recipes")
    words = ("reproduce", "figure5", "--scale", "paper", "--data", "digits", "--out", tmp_path)
    models = (Model("LEGO-S-PG", "celeba-64-s-pg", ("model.preset=tiny-pg-16",)),)
    figure = ALL["figure5"]
    monkeypatch.setitem(ALL, "figure5", replace(figure, paper=replace(figure.paper, models=models)))
    assert call(*words)[0] == 0
    assert (tmp_path / "paper" / "figure5" / "LEGO-S-PG.png").is_file()


@pytest.mark.parametrize("kind", ["quality", "skipping", "convergence"])
def test_missing_weights_are_told_before_anything_is_trained(kind, call, tmp_path, monkeypatch):
    for name in ("LEGODIFF_ASSETS", "LEGODIFF_CACHE", "TORCH_HOME"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    scale = replace(SMALL, features="inception")
    monkeypatch.setitem(ALL, "tiny", Experiment("Tiny", kind, scale, scale))
    code, _, err = call("reproduce", "tiny", "--out", tmp_path / "out")
    assert (code, err.count("\n")) == (2, 1)
    assert "FID's Inception is missing" in err
    assert not (tmp_path / "out").exists()


def test_mistakes_are_one_line(call, tmp_path):
    for words, message in (
        (("table8",), "table8 is not known; choose from table1, table2"),
        (("table1", "--scale", "big"), "--scale big: choose from small, paper"),
        (("table1", "--seeds", "x"), "--seeds x: write whole numbers"),
        (("table1", "--data", tmp_path / "no"), "there is no"),
    ):
        code, _, err = call("reproduce", *words, "--out", tmp_path / "out")
        assert (code, err.count("\n")) == (2, 1), err
        assert message in err
    code, out, _ = call("reproduce")
    assert code == 0
    assert all(name in out for name in ALL)


def test_pages_are_plain():
    assert table(["a", "b"], [["1", "2"]]) == "| a | b |\n| --- | --- |\n| 1 | 2 |"
    assert spread([0.12345]) == "0.123"
    assert spread([1.0, 3.0]) == "2 ± 1"


def test_figures_begin_at_zero_and_kinds_are_not_joined(tmp_path, monkeypatch):
    """Else what seeds differ by looks like a trend."""
    kept = []
    monkeypatch.setattr(quality, "save_figure", lambda _, figure: kept.append(figure))
    rows = [
        {"line": line, "x": x, "model": str(x), "FD-a-1k(train)": value, "training seconds": 50 + n}
        for n, (line, x, value) in enumerate(
            [("kinds", "4", 0.9), ("kinds", "8", 1.0), ("share", 0.0, 0.9), ("share", 0.5, 1.0)]
        )
    ]
    setting = SimpleNamespace(out=tmp_path, scale=SimpleNamespace(more={}))
    quality._figure(ALL["figure11"], setting, rows)
    panels = kept[0].axes
    assert len(panels) == 4  # two, each with a second axis
    assert all(panel.get_ylim()[0] == 0 < 1.0 < panel.get_ylim()[1] for panel in panels)
    joined = {panel.get_title(): panel.lines[0].get_linestyle() for panel in panels[:2]}
    assert sorted(joined) == ["kinds", "share"]
    assert (joined["kinds"], joined["share"]) == ("None", "-")


def test_panels_of_skipping_begin_at_zero_and_show_every_point(tmp_path, monkeypatch):
    kept = []
    monkeypatch.setattr(skipping, "save_figure", lambda _, figure: kept.append(figure))
    rows = [
        {"model": "m", "side": side, "share": n, "FD-a-1k(train)": 0.24 + n / 99, "milliseconds": 9}
        for side in skipping.SIDES
        for n in (0, 1)
    ]
    skipping._figure(SimpleNamespace(out=tmp_path), rows)
    low, high = kept[0].axes[0].get_ylim()
    assert (low, kept[0].axes[1].get_ylim()[0]) == (0, 0)
    assert high > 1.1 * 0.25
