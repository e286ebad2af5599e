"""The commands that draw, plan and make canvases, as a user calls them."""

import json
import re
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from legodiff import LegoPipeline, planning, store
from legodiff.cli import common
from legodiff.sampling import Method


@pytest.fixture
def quick(monkeypatch):
    """Planning in a moment."""
    for name, value in (("GRIDS", 3), ("CHECKED", 5), ("PAPER", 2)):
        monkeypatch.setattr(planning, name, value)


@pytest.fixture
def copy(model, tmp_path):
    """The model in a folder of its own."""
    LegoPipeline.from_pretrained(model).save_pretrained(tmp_path / "copy")
    return tmp_path / "copy"


def cheapest(folder):
    """The share of the full FLOPs that the cheapest plan takes, rounded up."""
    curve = json.loads((folder / "plans.json").read_text())["curves"][0]
    return 1e-4 + curve["points"][0]["flops"] / curve["full"]["flops"]


def refused(call, message, *words):
    """Checks that a command line ends with exit code 2 and this one line."""
    code, out, err = call(*words)
    assert code == 2
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message in err


def test_plan_keeps_shows_and_draws_what_budgets_use(call, copy, tmp_path, quick):
    words = ("--steps", 4, "--guidance", 1.5)
    code, out, _ = call("plan", copy, *words, "--images", 4)
    assert code == 0
    assert "the least error at every cost" in out
    assert f"In {copy / 'plans.json'} and {copy / 'plans.png'}. Measured on 4 images" in out
    assert "legodiff sample" in out
    width, height = Image.open(copy / "plans.png").size
    assert min(width, height) > 300
    curves = json.loads((copy / "plans.json").read_text())["curves"]
    assert len(curves) == 1
    kinds = {point["kind"] for point in curves[0]["rivals"]}
    assert kinds == {"fewer steps", "other solver", "paper"}

    share = cheapest(copy)
    found = re.search("guidance 1.5: budgets from (.*) to 1", call("info", copy)[1])
    assert float(found[1]) == pytest.approx(share, abs=0.01)
    code, out, err = call(
        *("sample", copy, *words, "--seeds", "0-2", "--budget", share, "--out", tmp_path / "out")
    )
    assert (code, err) == (0, "")
    assert "plan (by legodiff plan)" in out
    assert "measured now" in out
    made = json.loads(Image.open(tmp_path / "out" / "000000.png").text["flops"])
    assert made <= share * curves[0]["full"]["flops"]
    code, out, _ = call(
        *("sample", copy, *words, "--seeds", "0", "--budget", "9s", "--out", tmp_path / "time")
    )
    assert code == 0
    assert "4 of 4 steps" in out

    other = next(point for point in curves[0]["rivals"] if point["kind"] == "other solver")
    curves[0]["points"] = [other, curves[0]["full"]]
    (copy / "plans.json").write_text(json.dumps({"curves": curves}))
    code, out, _ = call("sample", copy, *words, "--seeds", "0", "--budget", 0.9, "--out", tmp_path)
    assert code == 0
    steps = other["method"]["steps"]
    assert f"{steps} steps of dpmpp_2m for 4 of heun, bricks 0+1+2" in " ".join(out.split())

    # Plans for another method stand beside it; the same method takes its place.
    own = ("--guidance-interval", "0.1,9", "--self-guidance", 1.2, "--option", "churn=1")
    assert call("plan", copy, "--steps", 2, "--images", 2, *own)[0] == 0
    assert call("plan", copy, *words, "--images", 2)[0] == 0
    curves = json.loads((copy / "plans.json").read_text())["curves"]
    assert sorted(curve["images"] for curve in curves) == [2, 2]


def test_without_matplotlib_plans_are_kept_and_shown_without_a_picture(
    call, copy, quick, monkeypatch
):
    for name in ("matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)
    code, out, err = call("plan", copy, "--steps", 2, "--images", 2)
    assert (code, err) == (0, "")
    assert "the least error at every cost" in out
    assert "No picture of them: matplotlib is not installed; run: pip install" in out
    assert f"In {copy / 'plans.json'}. Measured on 2 images" in out
    assert (copy / "plans.json").is_file()
    assert not (copy / "plans.png").exists()


def test_a_budget_too_small_names_the_cheapest_plan(call, copy, tmp_path, quick):
    assert call("plan", copy, "--steps", 3, "--images", 2)[0] == 0
    share = cheapest(copy) - 1e-4
    words = ("sample", copy, "--steps", 3, "--out", tmp_path / "out", "--budget")
    refused(call, f"budget 0.001 is too small: the cheapest plan takes {share:.3f}", *words, 0.001)
    refused(call, "budget 0.0001ms is too small: the fastest plan takes", *words, "0.0001ms")
    assert not (tmp_path / "out").exists()


def test_plans_of_another_model_are_refused(call, copy, tmp_path, quick):
    assert call("plan", copy, "--steps", 2, "--images", 2)[0] == 0
    pipe = LegoPipeline.from_pretrained(copy)
    with torch.no_grad():
        next(pipe.stack.parameters()).add_(1.0)
    store.write_weights(copy / "model.safetensors", pipe.stack.state_dict())
    words = ("sample", copy, "--steps", 2, "--budget", 1, "--out", tmp_path / "out")
    refused(call, "run legodiff plan again", *words)
    assert call("plan", copy, "--steps", 2, "--images", 2)[0] == 0  # and now it fits
    assert call(*words)[::2] == (0, "")


def test_a_broken_model_draws_nothing(call, copy, tmp_path):
    pipe = LegoPipeline.from_pretrained(copy)
    with torch.no_grad():
        next(pipe.stack.parameters()).fill_(float("nan"))
    store.write_weights(copy / "model.safetensors", pipe.stack.state_dict())
    for words in (
        ("sample", copy, "--out", tmp_path / "out"),
        ("canvas", copy, "--size", "16x32", "--out", tmp_path / "out.png"),
        ("plan", copy),
    ):
        code, _, err = call(*words, "--steps", 2)
        assert code == 2
        assert err == "error: the model drew values that are not finite; is it broken?\n"
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "out.png").exists()
    assert not (copy / "plans.json").exists()


def test_the_options_of_samplers_and_guidance_arrive(call, model, tmp_path):
    words = ("--steps", 3, "--labels", "1,none", "--guidance", 1.5, "--guidance-interval", "0.1,9")
    own = ("--option", "churn=2", "--option", "s_noise=1.01", "--self-guidance", 1.2)
    assert call("sample", model, *words, *own, "--out", tmp_path)[0] == 0
    pipe = LegoPipeline.from_pretrained(model)
    drawn = pipe(
        labels=[1, None],
        seeds=[0, 1],
        steps=3,
        guidance=1.5,
        guidance_interval=(0.1, 9.0),
        self_guidance=1.2,
        churn=2.0,
        s_noise=1.01,
    )
    for seed in (0, 1):
        with Image.open(tmp_path / f"{seed:06d}.png") as image:
            difference = np.asarray(image).astype(int) - np.asarray(drawn.images[seed])
            assert np.abs(difference).max() <= 1
            assert json.loads(image.text["options"]) == {"churn": 2.0, "s_noise": 1.01}
            assert json.loads(image.text["interval"]) == [0.1, 9.0]


def test_refinement_and_animation_lie_beside_the_images(call, model, tmp_path):
    words = ("--steps", 3, "--seeds", "0-3", "--show", "refinement", "--animate")
    assert call("sample", model, *words, "gif", "--out", tmp_path / "all.npz")[0] == 0
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"all.npz", "all-grid.png", "all-refinement.png", "all-sampling.gif"}
    assert call("sample", model, *words, "webp", "--out", tmp_path / "all")[0] == 0
    for path in (tmp_path / "all-sampling.gif", tmp_path / "all" / "sampling.webp"):
        with Image.open(path) as image:
            assert image.n_frames == 3  # a level each, of 3 steps
    with np.load(tmp_path / "all.npz", allow_pickle=False) as data:
        assert data["arr_0"].shape == (4, 16, 16, 3)


def test_compiled_images_are_the_same(call, model, tmp_path, monkeypatch):
    plain = LegoPipeline.compile
    monkeypatch.setattr(LegoPipeline, "compile", lambda pipe: plain(pipe, backend="eager"))
    words = ("sample", model, "--steps", 2, "--seeds", "0-1", "--out")
    assert call(*words, tmp_path / "a")[0] == 0
    assert call(*words, tmp_path / "b", "--compile")[0] == 0
    for seed in (0, 1):
        one, other = (Image.open(tmp_path / k / f"{seed:06d}.png") for k in "ab")
        assert np.abs(np.asarray(one).astype(int) - np.asarray(other)).max() <= 1


def test_precision_is_told_with_the_images(call, model, tmp_path):
    words = ("sample", model, "--steps", 2, "--seeds", "0", "--out")
    assert call(*words, tmp_path / "a", "--precision", "bf16")[0] == 0
    assert call(*words, tmp_path / "b")[0] == 0
    low, full = (Image.open(tmp_path / name / "000000.png") for name in "ab")
    assert low.info["precision"] == "bfloat16"
    assert "precision" not in full.info
    assert np.any(np.asarray(low) != np.asarray(full))
    code, _, err = call(*words, tmp_path / "c", "--precision", "fp8")
    assert (code, err) == (2, "error: --precision fp8: choose from fp32, bf16\n")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--option", "churn"], "--option churn: write NAME=NUMBER"),
        (["--option", "eta=1"], "heun has no option 'eta'; it takes churn"),
        (["--option", "churn=-1"], "churn is -1.0; it must be a number from 0 on"),
        (["--sampler", "ddim", "--option", "eta=2"], "eta is 2.0; it must be from 0 to 1"),
        (["--guidance", "nan"], "guidance is nan; it must be a number from -1000"),
        (["--guidance-interval", "1"], "write two noise levels, such as 0.2,5"),
        (["--guidance-interval", "5,1"], "guidance interval 5 to 1: give two noise levels"),
        (["--guidance", "2", "--labels", "none"], "guidance needs labels to guide towards"),
        (["--sampler", "ddpm", "--steps", "2000"], "steps is 2000"),
        (["--show", "all"], "--show all: the only choice is refinement"),
        (["--animate", "gif", "--size", "16x32"], "look on at whole images; leave out --size"),
        (["--animate", "mp4"], "--animate mp4: choose gif or webp"),
        (["--budget", "cheap"], "give a share such as 0.5, or a time such as 50ms"),
        (["--budget", "50ms"], "a time needs plans"),
        (["--budget", "1.5"], "it is a share of the full FLOPs, in (0, 1]"),
        (["--seeds", "1,1"], "a seed stands there twice"),
    ],
)
def test_mistakes_in_sampling_are_one_line(call, model, tmp_path, words, message):
    refused(call, message, "sample", model, *words, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_canvas_has_its_classes_and_says_how_it_was_made(call, model, tmp_path):
    pipe = LegoPipeline.from_pretrained(model)
    words = ("canvas", model, "--size", "24x44", "--steps", 2, "--seed", 3, "--out")
    code, out, _ = call(*words, tmp_path / "a.png", "--labels", "zero,none,7", "--wrap", "x")
    assert code == 0
    assert "24x44 pixels" in out
    assert "times what it does" in out
    with Image.open(tmp_path / "a.png") as image:
        assert image.size == (44, 24)
        assert image.text["seed"] == "3"
        assert image.text["wrap"] == "x"
        assert Method.from_dict(
            {k: json.loads(image.text[k]) for k in ("steps", "guidance", "plan")}
            | {"sampler": image.text["sampler"]}
        ).flops(pipe.sampling, pipe.stack.spec, (16, 16)) < json.loads(image.text["flops"])
    # The same regions as boxes, and as a map, give the same picture.
    boxes = [[0, [0, 0, 1, 15 / 44]], ["7", [0, 29 / 44, 1, 1]]]
    (tmp_path / "boxes.json").write_text(json.dumps(boxes))
    plan = np.full((1, 44), 10, dtype=np.uint8)
    plan[:, :15], plan[:, 29:] = 0, 7
    Image.fromarray(plan).save(tmp_path / "map.png")
    pictures = []
    for regions in ("boxes.json", "map.png"):
        more = ("--regions", tmp_path / regions, "--wrap", "x", "--blend", 3, "--overwrite")
        assert call(*words, tmp_path / "b.png", *more)[0] == 0
        pictures.append(np.asarray(Image.open(tmp_path / "b.png")))
    assert np.array_equal(*pictures)
    assert call(*words, tmp_path / "c.png", "--labels", "1", "--stride", 8)[0] == 0
    assert not np.array_equal(np.asarray(Image.open(tmp_path / "c.png")), pictures[0])


@pytest.mark.parametrize(
    ("mode", "pixels", "labels"),
    [
        ("I;16", np.array([[0, 300, 999]], np.uint16), (0, 300, 999)),
        ("L", np.array([[0, 200, 255]], np.uint8), (0, 200, 255)),
        ("1", np.array([[False, True, True]]), (0, 1)),
        ("RGB", np.full((1, 3, 3), 7, np.uint8), (7,)),
    ],
)
def test_the_values_of_a_map_are_class_indices_as_they_stand(tmp_path, mode, pixels, labels):
    image = Image.fromarray(pixels)
    assert image.mode == mode
    image.save(tmp_path / "map.png")
    pipe = SimpleNamespace(stack=SimpleNamespace(spec=SimpleNamespace(classes=1000)))
    command = sys.modules["legodiff.cli.canvas"]
    read = command._regions(None, str(tmp_path / "map.png"), pipe, (1, 3), 0, (False, False))
    assert read.labels == labels
    if mode == "1":
        assert read.masks.tolist() == [[[1, 0, 0]], [[0, 1, 1]]]


def test_a_canvas_of_the_training_size_has_its_class_too(call, model, tmp_path):
    words = ("canvas", model, "--size", "16x16", "--steps", 2, "--labels", 7, "--out")
    assert call(*words, tmp_path / "a.png")[0] == 0
    plain = LegoPipeline.from_pretrained(model)(labels=7, seeds=0, steps=2).images[0]
    drawn = np.asarray(Image.open(tmp_path / "a.png")).astype(int)
    assert np.abs(drawn - np.asarray(plain)).max() <= 1
    both = ("canvas", model, "--size", "16x16", "--steps", 2, "--labels", "7,3", "--out")
    assert call(*both, tmp_path / "b.png")[0] == 0
    assert not np.array_equal(np.asarray(Image.open(tmp_path / "b.png")), drawn)


def test_a_size_that_cannot_be_is_cropped_on_request(call, model, tmp_path):
    words = ("canvas", model, "--steps", 1, "--out", tmp_path / "a.png", "--size", "18x35")
    refused(call, "18x35 does not fit these bricks: 4 must divide both sides; the nearest", *words)
    assert call(*words, "--crop")[0] == 0
    assert Image.open(tmp_path / "a.png").size == (35, 18)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--size", "wide"], "--size wide: write HEIGHTxWIDTH"),
        (["--size", "0x16"], "a canvas of 0x16 does not fit"),
        (["--wrap", "z"], "--wrap z: choose from none, x, y, both"),
        (["--stride", "8", "--margin", "2"], "--stride or --margin"),
        (["--stride", "17"], "stride is 17; it must be from 1 to the window's 16"),
        (["--margin", "9"], "margin is 9; it must be from 0 to half a window, 8"),
        (["--labels", "12"], "label 12: choose from 0 to 9"),
        (["--labels", "1", "--regions", "x.json"], "--labels or --regions"),
        (["--regions", "none.json"], "none.json"),
        (["--regions", "bad.json"], "bad.json must be JSON: [[class, [top, left"),
        (["--regions", "box.json"], "region 3: 0, 0.5, 1, 0.5 is no box"),
        (["--regions", "high.png"], "high.png has the value 11; values are class indices"),
        (["--regions", "higher.png"], "higher.png has the value 300; values are class indices"),
        (["--regions", "not.png"], "not.png"),
        (["--budget", "0.01"], "cheapest plan takes"),
        (["--out", "picture.jpg"], "the picture is a PNG; end the name in .png"),
        (["--out", "bad.json/picture.png"], "bad.json is a file; it must be a folder"),
        (["--out", "high.png"], "high.png exists already; add --overwrite"),
    ],
)
def test_mistakes_in_canvases_are_one_line(call, model, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.json").write_text("[[3, [0, 0]]]")
    (tmp_path / "box.json").write_text("[[3, [0, 0.5, 1, 0.5]]]")
    (tmp_path / "not.png").write_text("no picture")
    Image.fromarray(np.array([[0, 11]], dtype=np.uint8)).save(tmp_path / "high.png")
    Image.fromarray(np.array([[0, 300]], dtype=np.uint16)).save(tmp_path / "higher.png")
    before = sorted(tmp_path.iterdir())
    default = ["--size", "16x32", "--out", "out.png", "--steps", "1"]
    refused(call, message, "canvas", model, *default, *words)
    assert sorted(tmp_path.iterdir()) == before


def test_what_does_not_fit_on_the_disk_is_said_before(call, model, tmp_path, monkeypatch):
    full = type("Usage", (), {"free": 1000})()
    monkeypatch.setattr(common.shutil, "disk_usage", lambda path: full)
    message = "are to be written, and 0 MB are free; choose another --out"
    for name in ("out", "out.npz"):
        refused(call, message, "sample", model, "--out", tmp_path / "a" / name)
    refused(call, message, "canvas", model, "--size", "32x32", "--out", tmp_path / "a" / "b.png")
    assert list(tmp_path.iterdir()) == []


def test_no_space_in_the_middle_leaves_nothing_half_written(call, model, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store.os, "fsync", full)
    code, _, err = call("sample", model, "--steps", 1, "--seeds", "0", "--out", tmp_path / "out")
    assert (code, err) == (2, "error: [Errno 28] No space left on device\n")
    code, _, err = call(
        *("canvas", model, "--steps", 1, "--size", "16x32", "--out", tmp_path / "out" / "a.png")
    )
    assert (code, err) == (2, "error: [Errno 28] No space left on device\n")
    assert list((tmp_path / "out").iterdir()) == []
