"""Weights of others in whatever file they come: safetensors, NPZ, PyTorch's, EDM's pickles."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO
from zipfile import BadZipFile, ZipFile

import torch
from torch import Tensor

from legodiff import store
from legodiff.arrays import read_npz
from legodiff.interop.networks import THINGS, Thing
from legodiff.interop.tensors import LIMIT, MAGIC, read_archive, read_legacy
from legodiff.pickles import load

INSIDE = ("ema", "model", "state_dict")
"""Where the weights are in a checkpoint of more; the average of the weights is preferred."""
ATTRIBUTES = ("sigma_data", "num_heads", "dropout_prob")
"""Of a pickled network, read beside its weights: the first of the name, or None."""


@dataclass(frozen=True)
class Weights:
    """Tensors by name, and what else is known of the network they are of."""

    tensors: dict[str, Tensor]
    about: dict[str, Any]
    """``ATTRIBUTES`` of the network, of a pickled one."""
    kind: str
    """Of the file, in words."""


def read_weights(path: Path) -> Weights:
    """The weights in a file; nothing in it is run.

    Raises ValueError, in one line that names the file, if it holds none, is damaged or hostile.
    """
    if not path.is_file():
        raise ValueError(f"{path} is not a file")
    try:
        with path.open("rb") as file:
            kind, content = _content(path, file)
        tensors, about = _tensors_of(content)
    except ValueError as error:
        raise ValueError(str(error) if str(path) in str(error) else f"{path}: {error}") from error
    return Weights(tensors, about, kind)


def _content(path: Path, file: BinaryIO) -> tuple[str, Any]:
    start = file.read(16)
    file.seek(0)
    if start[8:9] == b"{":
        return "safetensors", store.read_weights(path)
    if start[:2] == b"PK":
        if _members(file) <= {".npy"}:
            return "NPZ", {name: torch.from_numpy(array) for name, array in read_npz(file).items()}
        return "PyTorch archive", read_archive(file, THINGS)
    if start[:1] == b"\x80":
        if _is_legacy(file):
            return "PyTorch file", read_legacy(file, THINGS)
        return "pickle", load(file, THINGS, LIMIT)
    raise ValueError("it is neither safetensors, NPZ, a PyTorch file nor a pickle")


def _is_legacy(file: BinaryIO) -> bool:
    """Whether the file begins with the number by which ``torch.save`` knows its own."""
    head = file.read(64)
    file.seek(0)
    return MAGIC.to_bytes(10, "little") in head


def _members(file: BinaryIO) -> set[str]:
    try:
        with ZipFile(file) as members:
            return {Path(name).suffix for name in members.namelist()}
    except (BadZipFile, OSError, RuntimeError, NotImplementedError) as error:
        raise ValueError(f"damaged archive ({' '.join(str(error).split())[:200]})") from error
    finally:
        file.seek(0)


def _tensors_of(content: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors in a state dict, in a network, or in a checkpoint that holds either."""
    if isinstance(content, Mapping) and not any(isinstance(v, Tensor) for v in content.values()):
        for name in INSIDE:
            if isinstance(content.get(name), Mapping | Thing):
                content = content[name]
                break
    about = {}
    if isinstance(content, Thing):
        about = {name: content.find(name) for name in ATTRIBUTES}
        content = content.tensors()
    if not isinstance(content, Mapping) or not content:
        raise ValueError("it holds no weights")
    other = [name for name, tensor in content.items() if not isinstance(tensor, Tensor)]
    if other:
        raise ValueError(f"it holds more than weights: {str(other[0])[:100]!r}")
    if not all(isinstance(name, str) for name in content):
        raise ValueError("its tensors have numbers for names")
    return dict(content), about
