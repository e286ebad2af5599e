"""kill -9 at any moment, also while a checkpoint is written: nothing that was kept is lost."""

import multiprocessing
import random
import signal
import time

import pytest
from small_runs import CODEC, Bars, checkpoint_tensors, config, quiet, same

from legodiff.train.checkpoint import list_checkpoints, read_state
from legodiff.train.loop import train

KILLS = 100
# A checkpoint at every step, so that most kills come while one is being written.
SETTINGS = ("train.checkpoint_images=16", "train.images=100000", "train.keep=2", "train.decay_to=1")


def go_on(folder, *changes):
    train(config(*SETTINGS, *changes), Bars(), CODEC, folder, resume=True, say=quiet)


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="needs fork")
def test_a_hundred_kills_lose_nothing(tmp_path):
    run = tmp_path / "killed"
    draw, fork = random.Random(0), multiprocessing.get_context("fork")
    known, began, usual = 0, time.monotonic(), 0.0
    for _ in range(KILLS):
        child = fork.Process(target=go_on, args=(run,))
        child.start()
        if not usual:  # the first one tells how long it takes to get going on this machine
            while not list_checkpoints(run):
                assert child.is_alive()
                time.sleep(0.01)
            usual = time.monotonic() - began
        time.sleep(draw.uniform(0, 1.5 * usual))
        before = [int(path.name) for path in list_checkpoints(run)]
        child.kill()
        child.join()
        assert child.exitcode == -signal.SIGKILL
        known = max([known, *before])
        folders = list_checkpoints(run)
        if folders:
            assert int(folders[-1].name) >= known
            assert read_state(folders[-1])["images"] == int(folders[-1].name)
            assert checkpoint_tensors(run)  # loads whole
    reached = int(list_checkpoints(run)[-1].name)
    assert reached >= 32
    go_on(run, f"train.images={reached + 32}")
    go_on(tmp_path / "calm", f"train.images={reached + 32}", "train.checkpoint_images=100000")
    assert same(checkpoint_tensors(run), checkpoint_tensors(tmp_path / "calm"))
