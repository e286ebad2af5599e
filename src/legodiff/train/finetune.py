"""Beginning with the weights of another model, whose classes or size may differ."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from legodiff import store
from legodiff.model.stack import LegoStack

CLASSES = "class_embedding.weight"
BASE = "bricks.0.network."
"""Prefix of the weights of a stack that is the first brick of another."""


@dataclass(frozen=True)
class Adopted:
    """What came of the tensors of both models, by name."""

    folder: Path
    loaded: list[str]
    fresh: list[str]
    """Tensors of the new model that keep their random beginning."""
    unused: list[str]
    """Tensors of the old model that have no place in the new one."""
    classes: list[str]
    """Names of the classes whose embeddings were taken over."""

    def __str__(self) -> str:
        lines = [f"from {self.folder}: {len(self.loaded)} tensors loaded"]
        if self.classes:
            lines.append(f"classes taken over by name: {_listed(self.classes)}")
        for what, names in (("re-initialised", self.fresh), ("unused", self.unused)):
            lines.append(f"{what}: {_listed(names)}")
        return "\n".join(lines)


def adopt(network: LegoStack, class_names: Sequence[str], folder: Path) -> Adopted:
    """Loads into a network all that fits of the average in a run or model folder.

    Tensors are matched by name and shape; class embeddings by the names of the classes, and the
    embedding of "no class" always. Raises ValueError if nothing fits.
    """
    folder = store.locate(folder)
    old = store.read_weights(folder / store.WEIGHTS)
    new = network.state_dict()
    if getattr(network.spec.bricks[0], "network", None) == "LegoStack":  # the other is inside
        old = {f"{BASE}{name}": tensor for name, tensor in old.items()}
    names = store.read_config(folder).get("class_names", [])
    loaded, classes = {}, []
    for name, tensor in new.items():
        if name == CLASSES and name in old:
            classes = [kind for kind in class_names if kind in names]
            loaded[name] = _classes(tensor, class_names, old[name], names)
        elif name in old and old[name].shape == tensor.shape:
            loaded[name] = old[name]
    if not loaded:
        raise ValueError(
            f"no tensor of {folder} fits this model; give it the same width and bricks"
        )
    network.load_state_dict(loaded, strict=False)
    fresh = sorted(new.keys() - loaded.keys())
    if CLASSES in loaded and len(classes) < len(class_names):
        fresh.append(f"{len(class_names) - len(classes)} rows of {CLASSES}")
    return Adopted(folder, sorted(loaded), fresh, sorted(old.keys() - loaded.keys()), classes)


def _classes(
    fresh: Tensor, class_names: Sequence[str], old: Tensor, old_names: Sequence[str]
) -> Tensor:
    """A class table with the rows of the old one where the names agree, and its "no class"."""
    table = fresh.clone()
    if old.shape[1] != fresh.shape[1]:
        return table
    table[-1] = old[-1]
    for row, name in enumerate(class_names):
        if name in old_names:
            table[row] = old[old_names.index(name)]
    return table


def _listed(names: Sequence[str], most: int = 6) -> str:
    """Names in one line, the first ones if there are many."""
    if not names:
        return "none"
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
