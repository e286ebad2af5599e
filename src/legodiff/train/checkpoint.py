"""Checkpoints of a run: everything a run needs to go on exactly where it was.

A checkpoint is a folder ``checkpoints/{images:012d}`` with the weights, their average and the
optimizer's moments as safetensors (torch's distributed checkpoint, so that a run can go on with
another number of processes), and ``state.json``. Noise, data order and learning rate follow from
the seed and the images seen, so nothing else is kept.
"""

import json
import os
import shutil
import warnings
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.hf_storage import (
    HuggingFaceStorageReader,
    HuggingFaceStorageWriter,
)
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import async_save

from legodiff import store
from legodiff.train.distributed import World, plain
from legodiff.train.learner import Learner

warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # on one process
STATE, INDEX = "state.json", "index.json"
ROOM = 1.05  # free space asked for, in sizes of a checkpoint
Beside = dict[str, tuple[dict[str, Tensor], dict[str, str]]]
"""Weights in the run folder: file -> tensors and what is told of them."""


class Checkpoints:
    """Writes the checkpoints of a run beside its training, whole or not at all.

    ``save`` copies and returns; a thread writes into a temporary folder and renames it. What goes
    wrong there is raised by the next ``save``, ``poll`` or ``wait``.
    """

    def __init__(self, run: Path, world: World, sharded: bool, keep: int) -> None:
        self.run, self.folder = run, run / "checkpoints"
        self.world, self.sharded, self.keep = world, sharded, keep
        self.group = dist.new_group(backend="gloo") if sharded else None
        self.thread = ThreadPoolExecutor(1, "checkpoint")
        self.pending: Future[None] | None = None

    def save(self, learner: Learner, state: Mapping[str, Any], config: Mapping[str, Any]) -> None:
        """Begins a checkpoint, and the run's ``model``, ``raw`` and ``config`` beside it.

        ``state`` is kept in ``state.json``: "images", and "score" for choosing the best. Raises
        ValueError if there is not enough space.
        """
        self.wait()
        temporary = self.folder / f".{state['images']:012d}.part"
        self.check_room(learner)
        if not (self.sharded or self.world.leads):
            return
        tensors = learner.tensors()
        writing: Any = async_save(  # copies the tensors before it returns
            tensors,
            storage_writer=HuggingFaceStorageWriter(str(temporary), save_distributed=True),
            process_group=self.group,
            no_dist=not self.sharded,
        )
        weights = self._weights(learner, tensors, state["images"])
        if self.world.leads:
            self.pending = self.thread.submit(
                self._finish, writing, temporary, dict(state), dict(config), weights
            )
        else:
            self.pending = writing

    def write_weights(self, learner: Learner, images: int, config: Mapping[str, Any]) -> None:
        """Writes what belongs beside a checkpoint that is there, and was cut off before it was."""
        if self.sharded or self.world.leads:
            weights = self._weights(learner, learner.tensors(), images)
            if self.world.leads:
                self._write_beside(weights, dict(config))

    def poll(self) -> None:
        """Raises what went wrong in the background, if anything has."""
        if self.pending is not None and self.pending.done():
            self.wait()

    def wait(self) -> None:
        """Returns when everything is written."""
        if self.pending is not None:
            pending, self.pending = self.pending, None
            pending.result()

    def close(self) -> None:
        """Lets what is being written come to its end, whatever ended the run."""
        self.thread.shutdown()

    def check_room(self, learner: Learner) -> None:
        """Clears away what was cut off; raises ValueError if a checkpoint does not fit then."""
        tensors = learner.tensors()
        sizes = {name: one.numel() * one.element_size() for name, one in tensors.items()}
        beside = sum(size for name, size in sizes.items() if not name.startswith("optimizer/"))
        size = sum(sizes.values()) + beside  # weights and average are written once more
        problem = None
        if self.world.leads:
            for left in self.folder.glob(".*.part"):
                shutil.rmtree(left)
            store.make_folder(self.folder)
            free = shutil.disk_usage(self.folder).free
            if free < ROOM * size:
                problem = (
                    f"{self.run}: a checkpoint takes {size / 1e6:,.0f} MB and {free / 1e6:,.0f} MB "
                    "are free; make room and go on with --resume auto"
                )
        if problem := self.world.share(problem):
            raise ValueError(problem)

    def _weights(self, learner: Learner, tensors: Mapping[str, Tensor], images: int) -> Beside:
        """Copies of the average and of the weights as they are."""
        kinds = {
            "ema": {"weights": "ema", "halflife_images": f"{learner.ema.halflife:g}"},
            "raw": {"weights": "raw"},
        }
        return {
            store.KINDS[kind]: (
                _copied(tensors, f"{kind}/", keep=self.world.leads),
                {**about, "images": str(images)},
            )
            for kind, about in kinds.items()
        }

    def _finish(
        self,
        writing: Future[Any],
        temporary: Path,
        state: dict[str, Any],
        config: dict[str, Any],
        weights: Beside,
    ) -> None:
        """In the thread of the first process: what remains once the tensors are written."""
        try:
            writing.result()
            store.write_atomically(temporary / STATE, json.dumps(state).encode())
            store.sync_folder(temporary)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        final = self.folder / temporary.name[1 : -len(".part")]
        replaced = _set_aside(final) if final.exists() else None
        os.replace(temporary, final)
        store.sync_folder(self.folder)
        if replaced is not None:
            shutil.rmtree(replaced)
        self._write_beside(weights, config)

    def _write_beside(self, weights: Beside, config: dict[str, Any]) -> None:
        for file, (tensors, about) in weights.items():
            store.write_weights(self.run / file, tensors, about)
        store.write_config(self.run, config)
        self._prune()

    def _prune(self) -> None:
        """Removes all but the newest and the best, and says in a file which these are."""
        folders = list_checkpoints(self.run)
        best = min(folders, key=_score)
        index = {"latest": folders[-1].name, "best": best.name}
        store.write_atomically(self.folder / INDEX, json.dumps(index).encode())
        for old in folders[: -self.keep]:
            if old != best:
                shutil.rmtree(_set_aside(old))


def _score(folder: Path) -> float:
    """What the best is chosen by: the loss of the average on images that never change."""
    try:
        return float(read_state(folder).get("score", "inf"))
    except ValueError:
        return float("inf")  # a broken one is not the best; going on with it will say so


def _set_aside(folder: Path) -> Path:
    """Renames a checkpoint to be removed, so that a half removed one is not taken for one."""
    going = folder.parent / f".{folder.name}.old.part"
    shutil.rmtree(going, ignore_errors=True)
    os.replace(folder, going)
    return going


def list_checkpoints(run: Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first."""
    return sorted(path for path in (run / "checkpoints").glob("[0-9]*") if path.is_dir())


def read_state(folder: Path) -> dict[str, Any]:
    """What ``state.json`` of a checkpoint says. Raises ValueError if it cannot be read."""
    try:
        state = json.loads((folder / STATE).read_text())
        return dict(state) | {"images": int(state["images"])}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(_broken(folder, error)) from error


def load_checkpoint(folder: Path, learner: Learner) -> dict[str, Any]:
    """Restores every tensor in place; returns the state. Raises ValueError if it is broken."""
    state = read_state(folder)
    tensors = learner.tensors()
    try:
        reader = HuggingFaceStorageReader(str(folder))
        missing = tensors.keys() - reader.read_metadata().state_dict_metadata.keys()
        if missing:
            raise ValueError(f"{len(missing)} tensors are missing, first {min(missing)}")
        with torch.no_grad():
            load(tensors, storage_reader=reader, no_dist=not learner.sharded)
    except Exception as error:  # torch wraps what it finds in many kinds; the user needs one line
        raise ValueError(_broken(folder, error)) from error
    if "scaler" in state:
        learner.scaler.load_state_dict(state["scaler"])
    return state


def _broken(folder: Path, error: Exception) -> str:
    reason = (str(error).strip() or repr(error)).splitlines()[-1]
    return f"checkpoint {folder} is broken ({reason}); remove it to go on from the one before"


def _copied(tensors: Mapping[str, Tensor], prefix: str, keep: bool) -> dict[str, Tensor]:
    """Copies on the CPU, in one piece, of the tensors whose names begin with a prefix.

    Each is put together by all processes that have a part, one after the other, and remains on
    those that ``keep`` it.
    """
    copies = {}
    for name, tensor in tensors.items():
        if name.startswith(prefix):
            one = plain(tensor.detach())
            if keep:
                copies[name.removeprefix(prefix)] = one.to("cpu", copy=True)
    return copies
