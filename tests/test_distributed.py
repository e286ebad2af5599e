"""Two processes on the CPU (gloo), forked here or started by torchrun as a user would."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small_runs import CODEC, Bars, config, ended, free_port, quiet, same, weights

from legodiff.data import Unreadable, index_at
from legodiff.model.compiled import compile_blocks
from legodiff.train import loop
from legodiff.train.checkpoint import list_checkpoints
from legodiff.train.distributed import World, joined
from legodiff.train.log import read_log
from legodiff.train.loop import train

SETTINGS = {
    **{"model.preset": "tiny-pr-16", "train.images": 128, "train.batch": 32},
    **{"train.checkpoint_images": 64, "train.picture_images": 0, "train.warmup_images": 32},
    **{"train.decay_to": 1.0, "train.learning_rate": 2e-3},
}
BARS = Bars()


def settings(**changes):
    changed = {name.replace("__", "."): value for name, value in changes.items()}
    return [f"{name}={value}" for name, value in (SETTINGS | changed).items()]


def command(run, processes, *words, **changes):
    """The command line of a run, as a user would write it."""
    train = ["train", "--data", "digits", "--run", str(run), "--device", "cpu", *words]
    train += [word for change in settings(**changes) for word in ("--set", change)]
    if processes == 1:
        return [sys.executable, "-m", "legodiff", *train]
    launch = ["torch.distributed.run", "--nproc-per-node", str(processes), "--master-port"]
    return [sys.executable, "-m", *launch, str(free_port()), "-m", "--", "legodiff", *train]


TORN = index_at(20, 40, 0)
"""The image that comes at position 20, in the second process's share of the first step."""


class Torn(Bars):
    def read(self, index, rng=None):
        if index == TORN:
            raise Unreadable(f"{index}.jpg", "truncated")
        return super().read(index, rng)


def one_of_many(rank, size, port, changes, run, resume, data, say):
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(rank)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    with joined(torch.device("cpu")) as world:
        train(config(*changes), data, CODEC, run, world=world, resume=resume, say=say)


def start(run, processes, resume=False, *, data=BARS, say=quiet, **changes):
    """Processes that train together, forked from this one: they need not import anything."""
    fork, port = multiprocessing.get_context("fork"), free_port()
    children = [
        fork.Process(
            target=one_of_many,
            args=(rank, processes, port, settings(**changes), run, resume, data, say),
        )
        for rank in range(processes)
    ]
    for child in children:
        child.start()
    return children


def together(*arguments, **changes):
    children = start(*arguments, **changes)
    assert set(ended(children)) == {0}


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    run = tmp_path_factory.mktemp("alone") / "run"
    together(run, 1)
    return run


def apart(first, second):
    return max((first[name] - second[name]).abs().max().item() for name in first)


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_processes_take_the_steps_of_one(alone, tmp_path, parallel):
    run = tmp_path / "run"
    together(run, 2, train__parallel=parallel, train__micro_batch=8)
    mine, theirs = read_log(run / "log.jsonl"), read_log(alone / "log.jsonl")
    assert [line["images"] for line in mine] == [32, 64, 96, 128]
    for one, other in zip(mine, theirs, strict=True):
        assert one["images"] == other["images"]
        assert one["losses"] == pytest.approx(other["losses"], abs=1e-5)
    for name in ("model", "raw"):
        assert apart(weights(run, name), weights(alone, name)) < 1e-5


def test_what_any_process_could_not_read_is_told_and_counted(tmp_path, capfd):
    together(tmp_path / "run", 2, data=Torn(), say=print, train__images=32)
    told = capfd.readouterr().out.splitlines()
    name = f"{TORN}.jpg: truncated"
    assert [line.split(": ", 1)[1] for line in told if "unreadable" in line] == [name]
    (line,) = read_log(tmp_path / "run" / "log.jsonl")
    assert line["unreadable"] == [name]


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_dropped_bricks_work_on_two_processes(tmp_path, parallel):
    for processes in (1, 2):
        run = tmp_path / str(processes)
        together(run, processes, train__parallel=parallel, train__brick_dropout=0.5)
    assert apart(weights(tmp_path / "1"), weights(tmp_path / "2")) < 1e-5


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_compiled_blocks_work_on_two_processes(tmp_path, monkeypatch, parallel):
    (graphs := tmp_path / "graphs").mkdir()

    def quick(graph, _):  # the real one takes a minute
        (graphs / str(os.getpid())).touch()
        return graph

    telling = partial(compile_blocks, backend=quick)
    monkeypatch.setattr("legodiff.train.learner.compile_blocks", telling)
    changes = {"train__parallel": parallel, "train__brick_dropout": 0.5}
    together(tmp_path / "1", 1, **changes)
    together(tmp_path / "2", 2, **changes, train__compile="true")
    assert len(list(graphs.iterdir())) == 2
    assert apart(weights(tmp_path / "1"), weights(tmp_path / "2")) < 1e-5


@pytest.mark.parametrize(
    ("before", "after"),
    [(("fsdp", 2), ("ddp", 1)), (("ddp", 1), ("fsdp", 2)), (("fsdp", 2), ("ddp", 2))],
)
def test_a_run_goes_on_with_another_number_of_processes(alone, tmp_path, before, after):
    run = tmp_path / "run"
    together(run, before[1], train__images=64, train__parallel=before[0])
    together(run, after[1], resume=True, train__parallel=after[0])
    assert apart(weights(run, "raw"), weights(alone, "raw")) < 1e-5


@pytest.mark.parametrize(("parallel", "workers"), [("ddp", 0), ("ddp", 1), ("fsdp", 0)])
def test_two_processes_that_are_killed_go_on_bit_for_bit(tmp_path, monkeypatch, parallel, workers):
    changes = {"train__images": 192, "train__workers": workers, "train__parallel": parallel}
    together(tmp_path / "calm", 2, **changes)
    run = tmp_path / "killed"
    rate = loop.learning_rate
    monkeypatch.setattr(loop, "learning_rate", lambda *to: time.sleep(0.5) or rate(*to))
    children = start(run, 2, **changes)  # slow enough to be killed in time
    monkeypatch.undo()
    while not list_checkpoints(run):
        assert all(child.is_alive() for child in children)
        time.sleep(0.01)
    ended(children, 0)
    assert int(list_checkpoints(run)[-1].name) < 192
    together(run, 2, resume=True, **changes)
    assert same(sharded_tensors(run), sharded_tensors(tmp_path / "calm"))
    losses = [
        [(line["images"], line["losses"], line["bands"]) for line in read_log(path / "log.jsonl")]
        for path in (run, tmp_path / "calm")
    ]
    assert losses[0] == losses[1]


def sharded_tensors(run):
    """The tensors of a run's newest checkpoint by file: a tensor may lie in several."""
    return {
        f"{file.name}/{name}": tensor
        for file in list_checkpoints(run)[-1].glob("*.safetensors")
        for name, tensor in load_file(file).items()
    }


def test_torchrun_starts_the_command(tmp_path):
    run = tmp_path / "run"
    words = command(run, 2, "--expect-world", "2", train__images=64, train__micro_batch=8)
    done = subprocess.run(words, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("2 processes on 1 host(s)") == 1  # one of them speaks
    assert "batch 32 = 2 processes x 8 images x 2 passes" in done.stdout
    assert [int(path.name) for path in list_checkpoints(run)] == [64]


def test_asked_to_stop_it_keeps_what_there_is_and_ends_well(tmp_path):
    run = tmp_path / "run"
    words = command(run, 1, train__images=20_000, train__checkpoint_images=10**6)
    child = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    try:
        while not (run / "log.jsonl").exists() or len(read_log(run / "log.jsonl")) < 1:
            time.sleep(0.02)
            assert child.poll() is None
        child.send_signal(signal.SIGINT)
        said, _ = child.communicate(timeout=300)
    finally:
        child.kill()
    assert child.returncode == 0
    kept = int(list_checkpoints(run)[-1].name)
    assert f"stopped after {kept:,} images; go on with --resume auto" in said
    assert json.loads((run / "checkpoints" / "index.json").read_text())["latest"] == f"{kept:012d}"


def test_two_processes_stop_together(tmp_path):
    run = tmp_path / "run"
    children = start(run, 2, train__images=20_000, train__checkpoint_images=10**6)
    while not (run / "log.jsonl").exists() or len(read_log(run / "log.jsonl")) < 1:
        time.sleep(0.02)
        assert all(child.is_alive() for child in children)
    children[1].terminate()  # one of them is enough
    assert set(ended(children)) == {0}
    kept = int(list_checkpoints(run)[-1].name)
    assert kept % 32 == 0
    together(run, 2, resume=True, train__images=kept + 32)
    assert int(list_checkpoints(run)[-1].name) == kept + 32


def test_too_few_processes_fail_at_once(tmp_path):
    done = subprocess.run(
        command(tmp_path / "run", 1, "--expect-world", "4"),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: 4 processes were expected and 1 were started")
    assert done.stderr.count("\n") == 1
    assert not Path(tmp_path / "run").exists()


def test_one_process_starts_nothing():
    with joined(torch.device("cpu")) as world:
        assert world == World()
        assert not torch.distributed.is_initialized()
        assert world.gather(3) == [3]
        assert world.share("a") == "a"
        assert world.any(True)
        assert not world.any(False)
        assert world.mean(torch.tensor([1.0, 3.0])).tolist() == [1.0, 3.0]
        assert world.describe() == "1 process on cpu"
