"""Checkpoints of a run: everything a run needs to go on exactly where it was.

A checkpoint is a folder ``checkpoints/{images:012d}`` with the weights, their average and the
optimizer's moments as safetensors. Noise, data order and learning rate follow from the seed and the
images seen, so nothing else is kept.
"""

import json
import os
import shutil
from pathlib import Path

import torch
from torch import Tensor

from legodiff import store
from legodiff.model.stack import LegoStack
from legodiff.train.ema import Ema

RAW = "raw.safetensors"
KEEP = 3


def save_checkpoint(
    run: Path, images: int, network: LegoStack, ema: Ema, optimizer: torch.optim.Optimizer
) -> Path:
    """Writes one checkpoint, whole or not at all, and removes all but the newest ``KEEP``."""
    folder = run / "checkpoints"
    final = folder / f"{images:012d}"
    temporary = folder / f".{final.name}.part"
    shutil.rmtree(temporary, ignore_errors=True)
    store.write_weights(temporary / RAW, network.state_dict())
    store.write_weights(temporary / "ema.safetensors", ema.network.state_dict())
    store.write_weights(temporary / "optimizer.safetensors", _moments(network, optimizer))
    store.write_atomically(temporary / "state.json", json.dumps({"images": images}).encode())
    if final.exists():
        shutil.rmtree(final)
    os.replace(temporary, final)
    for old in list_checkpoints(run)[:-KEEP]:
        shutil.rmtree(old)
    return final


def list_checkpoints(run: Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first."""
    return sorted(path for path in (run / "checkpoints").glob("[0-9]*") if path.is_dir())


def load_checkpoint(
    folder: Path, network: LegoStack, ema: Ema, optimizer: torch.optim.Optimizer
) -> int:
    """Restores weights, average and optimizer in place; returns the images seen."""
    images = int(json.loads((folder / "state.json").read_text())["images"])
    network.load_state_dict(store.read_weights(folder / RAW))
    ema.network.load_state_dict(store.read_weights(folder / "ema.safetensors"))
    moments = store.read_weights(folder / "optimizer.safetensors")
    state: dict[int, dict[str, Tensor]] = {}
    for number, (name, _) in enumerate(network.named_parameters()):
        prefix = f"{name}/"
        state[number] = {
            key.removeprefix(prefix): moments[key] for key in moments if key.startswith(prefix)
        }
    optimizer.load_state_dict(
        {"state": state, "param_groups": optimizer.state_dict()["param_groups"]}
    )
    return images


def _moments(network: LegoStack, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state by parameter name, such as "bricks.0.embed.weight/exp_avg"."""
    return {
        f"{name}/{key}": value
        for name, parameter in network.named_parameters()
        for key, value in optimizer.state[parameter].items()
    }
