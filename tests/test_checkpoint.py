import json
import shutil
import time
from collections import namedtuple
from contextlib import nullcontext

import pytest
import torch
from safetensors import safe_open
from small_runs import CODEC, Bars, checkpoint_tensors, config, quiet, same, weights

from legodiff import store
from legodiff.train import checkpoint
from legodiff.train.checkpoint import Checkpoints, list_checkpoints, read_state
from legodiff.train.distributed import World
from legodiff.train.learner import build_learner, build_network
from legodiff.train.loop import train
from legodiff.train.runs import finished, weights_written

Usage = namedtuple("Usage", "total used free")


def run(folder, *changes, **options):
    return train(config("train.decay_to=1", *changes), Bars(), CODEC, folder, say=quiet, **options)


def learner():
    settings = config()
    spec = settings.model.spec(1, 2)
    return build_learner(build_network(spec, 0), CODEC, settings.train, World())


def test_the_newest_and_the_best_are_kept_and_named(tmp_path):
    checkpoints = Checkpoints(tmp_path, World(), sharded=False, keep=2)
    for images, score in ((10, 0.5), (20, 0.3), (30, 0.4), (40, 0.6), (50, 0.35)):
        checkpoints.save(learner(), {"images": images, "score": score}, {"stack": {}})
    checkpoints.wait()
    assert [int(path.name) for path in list_checkpoints(tmp_path)] == [20, 40, 50]
    index = json.loads((tmp_path / "checkpoints" / "index.json").read_text())
    assert index == {"latest": f"{50:012d}", "best": f"{20:012d}"}


def test_training_may_go_on_while_it_is_written(tmp_path):
    """What is written is what was there when `save` was called."""
    one = learner()
    before = {name: tensor.clone() for name, tensor in one.tensors().items()}
    checkpoints = Checkpoints(tmp_path, World(), sharded=False, keep=3)
    checkpoints.save(one, {"images": 16}, {"stack": {}})
    with torch.no_grad():
        for tensor in one.tensors().values():
            tensor.fill_(7)
    checkpoints.wait()
    assert same(checkpoint_tensors(tmp_path), before)
    raw = {name.removeprefix("raw/"): t for name, t in before.items() if name.startswith("raw/")}
    assert same(weights(tmp_path, "raw"), raw)


def test_the_files_say_whose_weights_they_hold(tmp_path):
    run(tmp_path, "train.ema_halflife_images=77")
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert file.metadata() == {
            **{"format": "pt", "weights": "ema", "halflife_images": "77", "images": "96"}
        }
    with safe_open(tmp_path / "raw.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt", "weights": "raw", "images": "96"}


def test_too_little_space_is_told_before_anything_is_written(tmp_path, monkeypatch):
    run(tmp_path, "train.images=32")
    before = sorted(path for path in tmp_path.rglob("*") if path.name != "log.jsonl")
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda _: Usage(10**9, 10**9, 10_000))
    with pytest.raises(ValueError, match=r"^[^\n]*a checkpoint takes 2 MB and 0 MB are free"):
        run(tmp_path, "train.images=64", resume=True)
    with pytest.raises(ValueError, match="a checkpoint takes"):  # before the first step
        run(tmp_path / "new", "train.images=10000000000")
    shutil.rmtree(tmp_path / "new")
    assert before == sorted(path for path in tmp_path.rglob("*") if path.name != "log.jsonl")
    monkeypatch.undo()
    run(tmp_path, "train.images=64", resume=True)
    assert [int(path.name) for path in list_checkpoints(tmp_path)] == [32, 64]


def full(*_, **__):
    raise OSError(28, "No space left on device")


def test_the_room_asked_for_is_what_is_written(tmp_path, monkeypatch):
    """The tensors of a checkpoint, and of the two files of weights beside it."""
    run(tmp_path, "train.images=32")
    written = sum(path.stat().st_size for path in tmp_path.rglob("*.safetensors"))
    monkeypatch.setattr(checkpoint, "ROOM", 1)
    for free, fits in ((written, True), (0.95 * written, False)):
        usage = Usage(10**9, 10**9, free)
        monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda _, usage=usage: usage)
        checkpoints = Checkpoints(tmp_path / "new", World(), sharded=False, keep=1)
        with nullcontext() if fits else pytest.raises(ValueError, match="a checkpoint takes"):
            checkpoints.check_room(learner())


def test_weights_that_could_not_be_written_follow_when_the_run_goes_on(tmp_path, monkeypatch):
    run(tmp_path / "whole")
    monkeypatch.setattr(checkpoint.store, "write_weights", full)
    with pytest.raises(OSError, match="No space left"):
        run(tmp_path / "cut", "train.images=32")  # no weights at all yet
    monkeypatch.undo()
    assert not (tmp_path / "cut" / "model.safetensors").exists()
    (kept,) = list_checkpoints(tmp_path / "cut")
    number = kept.stat().st_ino
    run(tmp_path / "cut", "train.images=32", resume=True)
    assert weights_written(tmp_path / "cut") == 32
    assert kept.stat().st_ino == number  # it was not written again
    monkeypatch.setattr(checkpoint.store, "write_weights", full)
    with pytest.raises(OSError, match="No space left"):
        run(tmp_path / "cut", "train.images=96", "train.checkpoint_images=96", resume=True)
    monkeypatch.undo()
    assert finished(tmp_path / "cut", 96)
    assert weights_written(tmp_path / "cut") == 32  # those of before
    run(tmp_path / "cut", resume=True)
    for name in ("model", "raw"):
        assert same(weights(tmp_path / "cut", name), weights(tmp_path / "whole", name))


def test_a_checkpoint_that_is_replaced_is_removed_when_the_new_one_is_there(tmp_path, monkeypatch):
    run(tmp_path)
    newest = list_checkpoints(tmp_path)[-1]
    there, remove = [], checkpoint.shutil.rmtree

    def watched(folder, *how, **more):
        if folder.name == f".{newest.name}.old.part" and folder.exists():
            there.append(newest.exists())
        remove(folder, *how, **more)

    monkeypatch.setattr(checkpoint.shutil, "rmtree", watched)
    again = Checkpoints(tmp_path, World(), sharded=False, keep=3)
    again.save(learner(), {"images": int(newest.name)}, {})
    again.wait()
    again.close()
    assert there == [True]


def test_a_disk_that_is_full_after_all_leaves_the_last_checkpoint(tmp_path, monkeypatch):
    run(tmp_path, "train.images=32")
    good = checkpoint_tensors(tmp_path)
    monkeypatch.setattr(checkpoint.store, "write_atomically", full)
    monkeypatch.setattr(checkpoint.store, "write_config", lambda *_: None)
    with pytest.raises(OSError, match="No space left"):
        run(tmp_path, "train.images=64", resume=True)
    monkeypatch.undo()
    assert [path.name for path in (tmp_path / "checkpoints").iterdir() if path.is_dir()] == [
        f"{32:012d}"
    ]
    assert same(checkpoint_tensors(tmp_path), good)


def test_what_went_wrong_in_the_background_is_raised_in_the_next_step(tmp_path, monkeypatch):
    def broken(*_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(checkpoint.store, "sync_folder", broken)
    checkpoints = Checkpoints(tmp_path, World(), sharded=False, keep=3)
    checkpoints.save(learner(), {"images": 16}, {"stack": {}})
    while not checkpoints.pending.done():
        time.sleep(0.01)
    with pytest.raises(OSError, match="Input/output"):
        checkpoints.poll()
    checkpoints.poll()  # it is said once
    assert list_checkpoints(tmp_path) == []
    assert not list((tmp_path / "checkpoints").glob(".*.part"))


@pytest.mark.parametrize("damage", ["cut", "garbage", "missing", "state", "less"])
def test_a_broken_checkpoint_is_named_and_the_one_before_serves(tmp_path, damage):
    run(tmp_path, "train.images=64")
    run(tmp_path / "whole", "train.images=96")
    newest = list_checkpoints(tmp_path)[-1]
    (tensors,) = newest.glob("*.safetensors")
    if damage == "cut":
        tensors.write_bytes(tensors.read_bytes()[:-100])
    elif damage == "garbage":
        tensors.write_bytes(b"\xff" * 1000)
    elif damage == "missing":
        tensors.unlink()
    elif damage == "state":
        (newest / "state.json").write_text("{")
    else:
        kept = checkpoint_tensors(tmp_path)
        kept.pop("optimizer/bricks.0.embed.weight/exp_avg")
        store.write_weights(tensors, kept)
    with pytest.raises(ValueError, match=rf"^checkpoint {newest} is broken \([^\n]*; remove it"):
        run(tmp_path, "train.images=96", resume=True)
    shutil.rmtree(newest)
    run(tmp_path, "train.images=96", resume=True)
    assert same(checkpoint_tensors(tmp_path), checkpoint_tensors(tmp_path / "whole"))


def test_half_written_ones_are_ignored_and_removed(tmp_path):
    run(tmp_path, "train.images=32")
    left = tmp_path / "checkpoints" / f".{48:012d}.part"
    left.mkdir()
    assert [int(path.name) for path in list_checkpoints(tmp_path)] == [32]
    run(tmp_path, "train.images=64", resume=True)
    assert not left.exists()


def test_the_state_holds_nothing_but_images_and_score(tmp_path):
    run(tmp_path)
    state = read_state(list_checkpoints(tmp_path)[-1])
    assert state.keys() == {"images", "score"}
    assert state["images"] == 96
