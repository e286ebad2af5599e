"""`legodiff train` and `legodiff data` as they are called."""

import json
import re
import sys
from contextlib import nullcontext
from functools import partial

import numpy as np
import pytest
from PIL import Image

from legodiff import store
from legodiff.cli.common import nothing
from legodiff.config import load_config
from legodiff.data import encode
from legodiff.train import distributed
from legodiff.train.distributed import World


@pytest.fixture
def photos(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(6):
            pixels = rng.integers(0, 255, (40, 48, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{number}.png")
    return tmp_path / "photos"


SMALL = [
    *("--set", "model.preset=tiny-pr-16", "--set", "train.images=32", "--batch", 16),
    *("--set", "train.workers=0", "--set", "train.picture_images=0"),
]


def test_a_folder_of_photos_becomes_a_model_with_its_class_names(call, photos, tmp_path):
    run = tmp_path / "run"
    code, out, err = call("train", "--data", photos, "--size", "16x32", "--run", run, *SMALL)
    assert (code, err) == (0, "")
    assert "12 images, 2 classes, 16x32x3, never mirrored (--flip does); model tiny-pr-16" in out
    assert "batch 16 = 1 process x 16 images x 1 pass" in out
    config = store.read_config(run)
    assert config["class_names"] == ["cat", "dog"]
    assert config["stack"]["image_size"] == [16, 32]
    code, _, _ = call(
        *("sample", run, "--labels", "dog,cat", "--steps", 1, "--out", tmp_path / "s"),
        *("--weights", "raw"),
    )
    assert code == 0
    drawn = Image.open(tmp_path / "s" / "000000.png")
    assert drawn.size == (32, 16)
    assert (drawn.text["class"], drawn.text["weights"]) == ("dog", "raw")


def test_options_are_settings(call, photos, tmp_path, monkeypatch):
    given = []
    command = sys.modules["legodiff.cli.train"]
    monkeypatch.setattr(command, "_train", lambda config, *rest: given.append((config, *rest)))
    code, _, err = call(
        *("train", "images-32", "--data", photos, "--run", tmp_path / "r", "--size", "32x48"),
        *("--channels", 1, "--flip", "--strict-data", "--batch", 24, "--init", "runs/x"),
        *("--train-bricks", "0-1", "--keep", 5, "--resume", "auto", "--set", "train.batch=12"),
    )
    assert (code, err) == (0, "")
    ((config, run, world, resume),) = given
    assert (config.data.path, config.data.channels) == (str(photos), 1)
    assert (config.data.flip, config.data.strict) == (True, True)
    assert config.model.spec(3, 0).image_size == (32, 48)
    assert (config.train.batch, config.train.init) == (12, "runs/x")  # --set comes last
    assert (config.train.bricks, config.train.keep) == ((0, 1), 5)
    assert (run, world.size, resume) == (tmp_path / "r", 1, True)
    call("train", "--data", photos, "--run", tmp_path / "r", "--brick-dropout", 0.2)
    assert given[-1][0].train.brick_dropout == 0.2
    assert given[-1][0].model.preset == "lite-pr-64"  # the recipe for one's own images
    call("train", "--run", tmp_path / "r")
    assert given[-1][0] == load_config("digits")
    assert given[-1][0].data.flip is False


def test_fine_tuning_takes_the_recipe_of_the_run(call, photos, tmp_path):
    base = tmp_path / "base"
    assert call("train", "digits", "--run", base, *SMALL, "--set", "train.fill=zero")[0] == 0
    code, out, err = call(
        *("train", "--init", base, "--data", photos, "--run", tmp_path / "tuned"),
        *("--set", "train.images=16", "--batch", 8, "--channels", 1),
    )
    assert (code, err) == (0, "")
    assert f"from {base}: " in out
    assert "2 rows of class_embedding.weight" in out.replace("\n", " ")
    config = store.read_config(tmp_path / "tuned")
    assert config["run"]["model"]["preset"] == "tiny-pr-16"
    assert config["run"]["train"]["fill"] == "zero"
    assert config["class_names"] == ["cat", "dog"]


def test_a_dry_run_tells_the_cost_and_leaves_nothing(call, photos, tmp_path):
    code, out, err = call("train", "--data", photos, *SMALL, "--dry-run")
    assert (code, err) == (0, "")
    for words in ("parameters", "0.10 M", "FLOPs of training", "images/s", "hours for 32 images"):
        assert words in out, words
    shown = json.loads(out[out.index("{") : out.index("\n}") + 2])
    assert shown["train"]["batch"] == 16
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photos"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--size", "30"], "the nearest that fits all bricks is 32x32"),
        (["--channels", 2], "data.channels is 2"),
        (["--batch", 0], "train.batch is 0"),
        (["--brick-dropout", 1], "train.brick_dropout is 1"),
        (["--train-bricks", "7"], "choose from 0 to 2"),
        (["--set", "train.learning_rate=fast"], "train.learning_rate is 'fast'"),
        (["--set", "data.alpha=plaid"], "data.alpha is 'plaid'"),
        (["--init", "nowhere"], "nowhere"),
        (["--expect-world", 3], "3 processes were expected and 1 were started"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(call, photos, tmp_path, words, message):
    code, _, err = call(
        "train", "images-32", "--data", photos, "--run", tmp_path / "r", *SMALL, *words
    )
    assert code == 2
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message in err
    assert not (tmp_path / "r").exists()


def test_checking_prints_what_is_there_and_fails_for_what_is_broken(call, photos):
    code, out, _ = call("data", "check", photos, "--size", 32)
    assert code == 0
    flat = re.sub(r"\s+", " ", out)
    for words in ("images 12", "48x40: 12", "cat: 6, dog: 6", "RGB: 12", "lite-pr-32"):
        assert words in flat, words
    assert f"legodiff train --data {photos}" in out
    (photos / "cat" / "torn.png").write_bytes(b"\x89PNG")
    code, out, _ = call("data", "check", photos)
    assert code == 1
    assert "unreadable: " in out
    assert "torn.png" in out
    code, _, err = call("data", "check", photos.parent / "nothing")
    assert (code, err.count("\n")) == (2, 1)


def test_latents_are_encoded_trained_on_and_drawn_from(call, photos, tmp_path):
    """From photographs to pictures through a VAE, by the commands a user would type."""
    pytest.importorskip("diffusers")
    from vaes import make_vae

    vae, other = make_vae(tmp_path / "vae"), make_vae(tmp_path / "other", seed=1)
    encode = ("data", "encode", photos, "--vae", vae, "--size", 32, "--out", tmp_path / "latents")
    code, out, _ = call(*encode)
    assert code == 0
    assert "12 images encoded, 0 unreadable" in out
    assert "Deviation of each channel" in out
    assert f"imagenet-256-xl-pr --data {tmp_path / 'latents'} --size 8x8 --run" in out
    assert "0 images encoded" in call(*encode)[1]  # everything is there
    code, _, err = call(*encode, "--precision", "float32")
    assert (code, err) == (2, "error: --precision float32: choose from fp32, bf16\n")
    code, _, err = call(*(other if word == vae else word for word in encode))
    assert code == 2
    for word in (str(vae), str(other)):
        assert word in err

    run = tmp_path / "run"
    train = ("train", "digits", "--data", tmp_path / "latents", "--run", run, *SMALL)
    code, _, err = call(*train, "--flip", "--channels", 3)
    assert code == 2
    assert "holds latents, which take no channels and no flip; leave that out" in err
    code, _, err = call(*train)
    assert code == 2
    assert "the latents" in err
    assert "choose a preset of that size" in err
    words = ("--size", 8, "--set", "model.objective=ddpm", "--set", "model.sigma_data=1.0")
    code, out, err = call(*train, *words, "--set", "train.picture_images=32")
    assert (code, err) == (0, "")
    assert "12 images, 2 classes, 8x8x4, never mirrored; model" in out
    assert list((run / "samples").iterdir())  # in false colours: no VAE was named
    draw = ("sample", run, "--seeds", 0, "--steps", 1)
    assert call(*draw, "--out", tmp_path / "a")[0] == 0  # with the VAE that is recorded
    assert Image.open(tmp_path / "a" / "000000.png").size == (32, 32)
    code, _, err = call(*draw, "--out", tmp_path / "b", "--vae", other)
    assert code == 2
    assert "were made by the VAE" in err


def test_of_several_processes_each_line_is_told_once(call, photos, tmp_path, monkeypatch):
    """The bar and the counts by the first; that all is there, by the one that is done last."""
    pytest.importorskip("diffusers")
    from vaes import make_vae

    bars = []
    command = sys.modules["legodiff.cli.data"]
    monkeypatch.setattr(command, "progress", lambda: bars.append(1) or nullcontext(nothing))
    encoding = partial(encode.encode, shard_size=6)
    monkeypatch.setattr(encode, "encode", encoding)
    vae = make_vae(tmp_path / "vae")
    (photos / "dog" / "torn.png").write_bytes(b"")  # in the last of three shards

    def run(rank, out):
        monkeypatch.setattr(distributed, "joined", lambda _: nullcontext(World(rank, 2)))
        words = ("data", "encode", photos, "--vae", vae, "--size", 32, "--out", tmp_path / out)
        code, told, err = call(*words)
        assert (code, err) == (0, "")
        return told

    torn = "unreadable, the next image stands in for it"
    counted, done = "7 images encoded by the first of 2 processes, 1 unreadable", "Train on it:"
    for out, ranks in (("a", (0, 1)), ("b", (1, 0))):
        told = {rank: run(rank, out) for rank in ranks}
        assert counted in told[0]
        assert torn in told[0]
        assert (done in told[0], done in told[1]) == (out == "b", out == "a")
        assert "images encoded" not in told[1]
    assert bars == [1, 1]
    assert done in run(0, "a")
    assert run(1, "a") == ""
