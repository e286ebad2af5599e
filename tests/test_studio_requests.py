import shlex
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import awaken
from PIL import Image

from legodiff import LegoPipeline, LegoStack, preset
from legodiff.diffusion.regions import across
from legodiff.studio.elsewhere import Opened
from legodiff.studio.requests import Canvas, Images, Limits, Way

WAY = Way(steps=3, guidance=1.5, budget=0.8)


@pytest.fixture(scope="module")
def pipe(model):
    return LegoPipeline.from_pretrained(model)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (Images(seeds=tuple(range(5))), "5 images: this studio draws from 1 to 4 at once"),
        (Images(seeds=()), "0 images"),
        (Images(seeds=(4, 7, 4)), "seed 4 stands there twice; give each seed once"),
        (Images(Way(steps=21)), "21 steps: this studio takes from 1 to 20"),
        (Images(Way(steps=0)), "0 steps"),
        (Images(Way(sampler="magic")), "unknown sampler 'magic'"),
        (Images(Way(budget=0.01), (3,)), "budget 0.01 is too small: the cheapest plan takes"),
        (Images(Way(budget=float("nan")), (3,)), "budget is nan"),
        (Images(Way(guidance=2.0)), "guidance needs labels to guide towards"),
        (Canvas(Way(), size=(64, 101)), "64x101.*64x100"),
        (Canvas(Way(), size=(10**6, 10**6)), r"1e\+06 megapixels; this studio draws at most 0.01"),
        (Canvas(Way(), size=(32, 32), wrap="sideways"), "wrap is 'sideways'; choose from none"),
        (Canvas(Way(), size=(-16, -16)), "-16"),
    ],
)
def test_what_cannot_be_is_refused_in_a_line(pipe, request_, message):
    with pytest.raises(ValueError, match=message) as caught:
        request_.check(pipe, Limits(images=4, steps=20, pixels=10_000, waiting=0))
    assert "\n" not in str(caught.value)


def many_classes(count):
    return LegoPipeline(LegoStack(preset("tiny-pr-16", channels=1, classes=count)))


def test_the_masks_of_a_canvas_are_bounded(pipe, monkeypatch):
    pipe, limits = many_classes(300), Limits(images=4, steps=20, pixels=64 * 64, waiting=0)
    monkeypatch.setattr("legodiff.studio.requests.label_map", None)  # is not begun
    monkeypatch.setattr("legodiff.studio.requests.across", None)
    line = r"11 classes on 64x64 pixels: .* at most 10 on a canvas of that size; take fewer"
    for asked in (
        Canvas(labels=tuple(range(11)), size=(64, 64)),
        Canvas(size=(64, 64), painted=torch.arange(11)[None]),
    ):
        with pytest.raises(ValueError, match=line):
            asked.check(pipe, limits)
        replace(asked, size=(32, 64)).check(pipe, limits)  # has room for 20
    often = tuple(range(10)) * 50
    Canvas(labels=often, size=(64, 64)).check(pipe, limits)
    Canvas(labels=often, size=(64, 64)).check(many_classes(0), limits)


def test_within_the_limits(pipe):
    limits = Limits(images=2, steps=3, pixels=16 * 32, waiting=0)
    assert Images(WAY, (3,), (0, 1)).check(pipe, limits) == WAY.method(pipe)
    assert Canvas(Way(steps=3), size=(16, 32)).check(pipe, limits).steps == 3
    with pytest.raises(ValueError, match="megapixels"):
        Canvas(Way(steps=3), size=(16, 34)).check(pipe, limits)


def test_a_budget_of_one_is_all_there_is(pipe):
    full = Images(WAY, (3,), (0, 1)).at_full_compute()
    assert full.way.method(pipe) == WAY.full(pipe)
    assert WAY.method(pipe) != WAY.full(pipe)
    assert full.full_flops(pipe) == pipe(labels=[3], seeds=[0], steps=3, guidance=1.5).flops


@pytest.fixture
def rounded(model, tmp_path):
    """A run of which the raw weights are drawn with, rounded: the model, and how it was opened."""
    run = tmp_path / "run"
    shutil.copytree(model, run)
    torch.manual_seed(1)
    other = awaken(LegoStack(preset("tiny-pr-16", channels=1, classes=10)), seed=1)
    other.save_pretrained(tmp_path / "other")
    shutil.copy(tmp_path / "other" / "model.safetensors", run / "raw.safetensors")
    pipe = LegoPipeline.from_pretrained(run, weights="raw").to(dtype=torch.bfloat16)
    return pipe, Opened(str(run), weights="raw", precision="bf16")


def test_the_model_is_opened_as_it_was_here(rounded, call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (pipe, opened), found = rounded, {}
    asked = Images(Way(2), (3,), (4,))
    assert call(*on_cpu(asked.command(pipe, opened)))[0] == 0
    exec(asked.python(pipe, opened), found)
    here = np.asarray(pipe(labels=3, seeds=4, steps=2).images[0])
    assert np.array_equal(files(tmp_path / "drawn")["000004.png"], here)
    assert np.array_equal(np.asarray(found["out"].images[0]), here)
    for one in ({"weights": "raw"}, {}):
        plain = LegoPipeline.from_pretrained(opened.name, **one)
        assert not np.array_equal(np.asarray(plain(labels=3, seeds=4, steps=2).images[0]), here)
    canvas = Canvas(Way(2), (3, None), 2, (16, 32))
    assert call(*on_cpu(canvas.command(pipe, opened)))[0] == 0
    line = np.asarray(Image.open("canvas.png"))
    exec(canvas.python(pipe, opened), {})
    assert np.array_equal(np.asarray(Image.open("canvas.png")), line)


def on_cpu(command):
    """The words of a command after its name, where the images to compare with were drawn."""
    return [*shlex.split(command)[1:], "--device", "cpu"]


def files(folder):
    return {path.name: np.asarray(Image.open(path)) for path in sorted(folder.glob("0*.png"))}


@pytest.mark.parametrize("asked", [Images(WAY, (0, 3), (4, 1, 9)), Images(Way(3), (None,))])
def test_command_and_python_draw_the_same_images(pipe, model, call, tmp_path, monkeypatch, asked):
    monkeypatch.chdir(tmp_path)
    assert call(*on_cpu(asked.command(pipe, Opened(model))))[0] == 0
    drawn = files(tmp_path / "drawn")
    assert list(drawn) == [f"{seed:06d}.png" for seed in sorted(asked.seeds)]
    found = {}
    exec(asked.python(pipe, Opened(model)), found)
    for seed, image in zip(asked.seeds, found["out"].images, strict=True):
        assert np.array_equal(np.asarray(image), drawn[f"{seed:06d}.png"])
    assert (tmp_path / "drawn.png").is_file()


@pytest.mark.parametrize("name", ["a, b", "2"])
def test_names_that_a_list_would_break_are_told_by_number(pipe, monkeypatch, name):
    assert "--labels zero,none " in Images(WAY, (0, None)).command(pipe, Opened("run"))
    monkeypatch.setattr(pipe, "class_names", ("zero", name))
    assert "--labels 1,0,none " in Images(WAY, (1, 0, None)).command(pipe, Opened("run"))
    assert "--labels 1,0,none " in Canvas(WAY, (1, 0, None), size=(16, 32)).command(
        pipe, Opened("run")
    )


PAINTED = torch.tensor([[3, 10], [0, 0]])


@pytest.mark.parametrize(
    "asked",
    [
        Canvas(WAY, (3, None, 0), 2, (16, 40), "x"),
        Canvas(Way(2), size=(24, 32)),
        Canvas(Way(2), seed=1, size=(32, 32), painted=PAINTED),
    ],
)
def test_command_and_python_draw_the_same_canvas(pipe, model, call, tmp_path, monkeypatch, asked):
    monkeypatch.chdir(tmp_path)
    Image.fromarray(PAINTED.numpy().astype(np.uint8)).save("regions.png")
    exec(asked.python(pipe, Opened(model)), {})
    code = Image.open("canvas.png").copy()
    assert call(*on_cpu(asked.command(pipe, Opened(model))), "--overwrite")[0] == 0
    assert np.array_equal(np.asarray(code), np.asarray(Image.open("canvas.png")))
    assert code.size == asked.size[::-1]


def test_labels_lie_where_they_were_painted(pipe):
    regions = Canvas(size=(32, 32), painted=PAINTED).regions(pipe)
    assert regions.labels == (0, 3, 10)
    assert torch.equal(regions.masks.argmax(0)[[0, 0, -1], [0, -1, 0]], torch.tensor([1, 2, 0]))
    listed = Canvas(labels=(3, None), size=(16, 32)).regions(pipe)
    assert torch.equal(listed.masks, across([3, 10], (16, 32), blend=8).masks)
