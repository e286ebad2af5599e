"""Beginning with the weights of another model, whose classes or size may differ."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from legodiff import store
from legodiff.model.spec import ForeignSpec, StackSpec
from legodiff.model.stack import LegoStack

CLASSES = "class_embedding.weight"
BASE = "bricks.0.network."
"""Prefix of the weights of a stack that is the first brick of another."""
MEANING = ("objective", "refine", "hand_over", "sigma_data")
"""What of a specification gives the same weights another meaning."""


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
    otherwise: list[str]
    """What the old model was trained with and the new one is not."""

    def __str__(self) -> str:
        lines = [f"from {self.folder}: {len(self.loaded)} tensors loaded"]
        if self.classes:
            lines.append(f"classes taken over by name: {_listed(self.classes)}")
        for what, names in (("re-initialised", self.fresh), ("unused", self.unused)):
            lines.append(f"{what}: {_listed(names)}")
        if self.otherwise:
            lines.append(f"trained otherwise than this model: {_listed(self.otherwise)}")
        return "\n".join(lines)


def adopt(network: LegoStack, class_names: Sequence[str], folder: Path) -> Adopted:
    """Loads into a network all that fits of the average in a run or model folder.

    Tensors are matched by name and shape; class embeddings by the names of the classes, and the
    embedding of "no class" always. A whole model may become the first brick of this one. Raises
    ValueError if nothing fits, or if that brick knows other classes.
    """
    folder = store.locate(folder)
    config = store.read_config(folder)
    names, was = config.get("class_names", []), StackSpec.from_dict(config["stack"])
    spec, first = network.spec, network.spec.bricks[0]
    numbered = isinstance(first, ForeignSpec) and first.classes and spec.classes
    if numbered and names and names != list(class_names):
        raise ValueError(
            f"{folder} is told its classes by number, as {_listed(names)}, and the data has "
            f"{_listed(class_names)}; give data of the same classes in the same order"
        )
    old, new = store.read_weights(folder / store.WEIGHTS), network.state_dict()
    inside = {f"{BASE}{name}": tensor for name, tensor in old.items()}
    if nested := len(_fitting(inside, new)) > len(_fitting(old, new)):
        old = inside
    pairs = {} if nested else {name: (getattr(was, name), getattr(spec, name)) for name in MEANING}
    otherwise = [f"{name}={before}" for name, (before, now) in pairs.items() if before != now]
    loaded, classes = _fitting(old, new), []
    if CLASSES in new and CLASSES in old and old[CLASSES].shape[1] == spec.width:
        classes = [kind for kind in class_names if kind in names]
        loaded[CLASSES] = _classes(new[CLASSES], class_names, old[CLASSES], names)
    if all(tensor.ndim < 2 for tensor in loaded.values()):  # a bias fits by chance
        raise ValueError(
            f"no tensor of {folder} fits this model; give it the same width and bricks"
        )
    network.load_state_dict(loaded, strict=False)
    fresh = sorted(new.keys() - loaded.keys())
    if CLASSES in loaded and len(classes) < len(class_names):
        fresh.append(f"{len(class_names) - len(classes)} rows of {CLASSES}")
    unused = sorted(old.keys() - loaded.keys())
    return Adopted(folder, sorted(loaded), fresh, unused, classes, otherwise)


def _fitting(old: Mapping[str, Tensor], new: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The old tensors that have a place in the new model, by name and shape; classes aside."""
    return {
        name: tensor
        for name, tensor in old.items()
        if name in new and name != CLASSES and tensor.shape == new[name].shape
    }


def _classes(
    fresh: Tensor, class_names: Sequence[str], old: Tensor, old_names: Sequence[str]
) -> Tensor:
    """A class table with the rows of the old one where the names agree, and its "no class"."""
    table = fresh.clone()
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
