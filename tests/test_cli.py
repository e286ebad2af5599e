import json
import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import legodiff
from legodiff import LegoPipeline


def test_every_command_helps_by_example():
    for command in (
        *([], ["demo"], ["train"], ["sample"], ["canvas"], ["plan"], ["info"], ["push"]),
        *(["bench"], ["evaluate"], ["evaluate", "stats"], ["evaluate", "canvas"], ["export"]),
        *(["reproduce"], ["import"], ["studio"], ["data"], ["data", "check"], ["data", "encode"]),
    ):
        done = subprocess.run(
            [sys.executable, "-m", "legodiff", *command, "--help"], capture_output=True, text=True
        )
        assert done.returncode == 0
        assert "Usage:" in done.stdout
        if command and command != ["data"]:
            examples = re.split("Examples?:", done.stdout)[1]
            assert f"legodiff {' '.join(command)}" in examples


def test_version(call):
    assert call("--version") == (0, f"{legodiff.__version__}\n", "")


def test_sample_writes_a_png_for_each_seed_and_a_grid(call, model, tmp_path):
    code, out, _ = call(
        *("sample", model, "--labels", "0-9", "--per-class", 2, "--steps", 2),
        *("--guidance", 1.5, "--skip", 0.5, "--out", tmp_path / "out", "--batch", 8),
    )
    assert code == 0
    assert "20 images" in out
    assert "6 evaluations" in out
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == [*(f"{seed:06d}.png" for seed in range(20)), "grid.png"]
    pipe = LegoPipeline.from_pretrained(model)
    drawn = pipe(
        labels=[i % 10 for i in range(20)],
        seeds=range(20),
        steps=2,
        guidance=1.5,
        plan=pipe.paper_plan(0.5, 2),
    )
    for seed, image in enumerate(drawn.images):
        read = Image.open(tmp_path / "out" / f"{seed:06d}.png")
        assert np.abs(np.asarray(read).astype(int) - np.asarray(image)).max() <= 1
        about = {
            k: json.loads(v)
            for k, v in read.text.items()
            if k not in ("software", "sampler", "model", "class", "weights")
        }
        assert about["seed"] == seed
        assert about["label"] == seed % 10
        assert about["plan"] == pipe.paper_plan(0.5, 2).to_dict()
        assert (about["steps"], about["guidance"], about["nfe"]) == (2, 1.5, 6)
        assert about["flops"] == drawn.flops
        assert read.text["class"] == pipe.class_names[seed % 10]
        assert read.text["model"] == pipe.fingerprint
        assert read.text["sampler"] == "heun"


def test_seeds_take_the_labels_in_turn(call, model, tmp_path):
    words = ("--seeds", "7,3-5", "--labels", "zero,none,9", "--steps", 1, "--out", tmp_path)
    assert call("sample", model, *words)[0] == 0
    labels = {
        path.stem: json.loads(Image.open(path).text["label"]) for path in tmp_path.glob("0*.png")
    }
    assert labels == {"000007": 0, "000003": None, "000004": 9, "000005": 0}


def test_images_are_not_overwritten_unasked(call, model, tmp_path):
    words = ("sample", model, "--seeds", "0-1", "--steps", 1, "--out", tmp_path)
    assert call(*words)[0] == 0
    before = (tmp_path / "000000.png").read_bytes()
    code, _, err = call(*words, "--guidance", 3)
    assert code == 2
    assert "exists already" in err
    assert (tmp_path / "000000.png").read_bytes() == before
    assert call(*words, "--guidance", 3, "--overwrite")[0] == 0
    assert (tmp_path / "000000.png").read_bytes() != before


def test_budget_and_size(call, model, tmp_path):
    words = ("--seeds", "0", "--steps", 4, "--budget", 0.8, "--size", "16x32", "--out", tmp_path)
    assert call("sample", model, *words)[0] == 0
    read = Image.open(tmp_path / "000000.png")
    assert read.size == (32, 16)
    assert len(json.loads(read.text["plan"])["bands"]) == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--labels", "12"], "label 12: choose from 0 to 9"),
        (["--labels", "dog"], "label 'dog'"),
        (["--labels", "9-0"], "a range is empty; write the smaller number first: 0-9"),
        (["--seeds", "a-b"], "--seeds a-b: write whole numbers"),
        (["--seeds", "3-"], "--seeds 3-: write whole numbers"),
        (["--seeds", "1", "--per-class", "2"], "--seeds or --per-class"),
        (["--skip", "2"], "fraction of steps to skip is 2.0"),
        (["--skip", "0.5", "--budget", "0.5"], "--skip or --budget"),
        (["--budget", "0.01"], "cheapest plan takes"),
        (["--sampler", "ddpn"], "unknown sampler 'ddpn'"),
        (["--size", "big"], "write HEIGHTxWIDTH"),
        (["--size", "17x16"], "17x16 does not fit"),
        (["--device", "quantum"], "--device quantum cannot be used here"),
    ],
)
def test_mistakes_in_sampling_are_one_line_and_write_nothing(call, model, tmp_path, words, message):
    code, _, err = call("sample", model, "--steps", 1, "--out", tmp_path / "out", *words)
    assert code == 2
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message in err
    assert not (tmp_path / "out").exists()


def test_other_mistakes_are_one_line_too(call, model, tmp_path):
    taken = tmp_path / "file"
    taken.write_text("mine")
    for words, message in (
        (["sample", tmp_path / "absent", "--out", tmp_path], "neither a folder nor a Hub id"),
        (["sample", tmp_path, "--out", tmp_path], "holds no config.json"),
        (["sample", model, "--out", taken], "is a file"),
        (["info", "lego-s-pq-64"], "neither a folder nor a Hub id"),
        (["train"], "say where the run is to be kept"),
        (["train", "nowhere.yaml", "--run", tmp_path / "r"], "there is no recipe nowhere.yaml"),
        (["train", "--run", tmp_path / "r", "--set", "train.imags=3"], "train.imags: unknown key"),
        (["train", "--run", tmp_path / "r", "--data", "cats"], "there is no cats"),
        (["train", "--run", tmp_path / "r", "--resume", "yes"], 'the only choice is "auto"'),
        (["demo", "--run", tmp_path], "holds something else"),
    ):
        code, _, err = call(*words)
        assert code == 2, words
        assert message in err, words
        assert err.count("\n") == 1, words
    assert taken.read_text() == "mine"
    assert not (tmp_path / "r").exists()


def test_train_sample_and_info_go_together(call, tmp_path):
    run = tmp_path / "run"
    words = ["train", "--data", "digits", "--run", run]
    for change in ("model.preset=tiny-pg-16", "train.images=64", "train.batch=16"):
        words += ["--set", change]
    code, out, _ = call(*words)
    assert code == 0
    assert f"legodiff sample {run} --out samples" in out
    assert call(*words)[0] == 2  # the folder holds a run now
    assert call(*words, "--resume", "auto")[0] == 0
    assert call("sample", run, "--steps", 1, "--seeds", "0-2", "--out", tmp_path / "s")[0] == 0
    code, out, _ = call("info", run)
    assert code == 0
    assert "10 classes" in out


def test_info_tells_bricks_parameters_and_flops(call):
    code, out, _ = call("info", "lego-s-pg-64")
    assert code == 0
    for figure in ("4x4", "16x16", "64x64", "256 x 4", "1 x 1024", "33.354 M", "31.4", "79.2%"):
        assert figure in out, figure
    assert "128x64x3" in call("info", "lego-s-pg-64", "--size", "128x64")[1]


def test_help_says_in_what_unit_a_size_is(call):
    for command in ("info", "bench"):
        told = " ".join(re.sub("[│|]", " ", call(command, "--help")[1]).split())
        assert "in the model" in told
        assert "own pixels (for" in told
        assert "in latents)" in told


def test_the_traceback_can_be_had(call, monkeypatch):
    monkeypatch.setenv("LEGODIFF_DEBUG", "1")
    with pytest.raises(ValueError, match="say where"):
        call("train")


def test_stopping_is_quiet(call, monkeypatch, model, tmp_path):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(LegoPipeline, "render", stop)
    code, _, err = call("sample", model, "--out", tmp_path / "out")
    assert code == 130
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["paint"], "No such command 'paint'"),
        (["sample"], "Missing argument"),
        (["info", "lego-s-pg-64", "--sise", "3"], "No such option"),
        (["demo", "--seed", "-1"], "--seed"),
    ],
)
def test_usage_errors_are_one_line(call, words, message):
    code, _, err = call(*words)
    assert code == 2
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message in err


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: x")]
)
def test_too_little_memory_is_one_line(call, monkeypatch, model, tmp_path, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(LegoPipeline, "render", fail)
    code, _, err = call("sample", model, "--out", tmp_path / "out")
    assert code == 2
    assert err.startswith("error: not enough memory")


def test_an_error_of_ours_keeps_its_traceback(call, monkeypatch, model, tmp_path):
    def fail(*_, **__):
        raise RuntimeError("a bug")

    monkeypatch.setattr(LegoPipeline, "render", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        call("sample", model, "--out", tmp_path / "out")
