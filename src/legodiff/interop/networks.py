"""Pickled networks of others, opened without their code: modules become data.

EDM's format keeps the source code of a class beside its weights, for the unpickler to run. Here it
is text like any other. An object of a class of theirs becomes a ``Thing``: the name of the class
and its attributes.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from legodiff.interop.tensors import TENSORS, Dict
from legodiff.pickles import LONGEST, RefusedError

PACKAGES = ("timm", "training", "torch_utils", "dnnlib", "argparse")
MODULES = 100_000  # in one network, at most


@dataclass
class Thing:
    """An object of a class that was not imported."""

    name: str
    """Of its class, with the module."""
    state: dict[str, Any] = field(default_factory=dict)

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, dict):
            raise RefusedError(f"a {self.name} whose attributes have no names")
        self.state.update(state)

    def walk(self) -> Iterator[tuple[str, "Thing"]]:
        """It and the modules inside, each with the dotted prefix of its names.

        Raises ValueError for more than any network has: a module may be inside itself.
        """
        waiting, seen = [("", self)], 0
        while waiting:
            prefix, thing = waiting.pop()
            seen += 1
            if seen > MODULES or len(prefix) > LONGEST:
                raise ValueError(f"{self.name}: modules within modules without end")
            yield prefix, thing
            inner = [(f"{prefix}{name}.", m) for name, m in thing.named("_modules", Thing)]
            waiting += reversed(inner)

    def named(self, kind: str, of: type[Any]) -> list[tuple[str, Any]]:
        """Its parameters, buffers or modules by name. Raises ValueError if that is no dict."""
        held = self.state.get(kind) or {}
        if not isinstance(held, dict):
            raise ValueError(f"{self.name}: its {kind} have no names")
        return [(str(name), value) for name, value in held.items() if isinstance(value, of)]

    def find(self, name: str) -> float | None:
        """The first number of that name among its attributes and those of the modules inside."""
        found = (thing.state.get(name) for _, thing in self.walk())
        return next((number for number in found if isinstance(number, int | float)), None)

    def tensors(self) -> dict[str, Tensor]:
        """Parameters and buffers by their dotted names, as in ``state_dict``."""
        return {
            prefix + name: tensor
            for prefix, thing in self.walk()
            for kind in ("_parameters", "_buffers")
            for name, tensor in thing.named(kind, Tensor)
        }


def _persistent(meta: Any) -> Thing:
    """An object in EDM's format: a dict of its source code, class name and attributes."""
    if not isinstance(meta, dict) or meta.get("type") != "class":
        raise RefusedError("an object in another version of EDM's format")
    name = meta.get("class_name")
    if type(name) is not str or len(name) > LONGEST:
        raise RefusedError("an object whose class has no name")
    thing = Thing(name)
    thing.__setstate__(meta.get("state"))
    return thing


def _texts(values: Any = ()) -> set[str]:
    if not all(type(value) is str for value in values):
        raise RefusedError("a set of something else than texts")
    return set(values)


class _Things(Mapping[tuple[str, str], Callable[..., Any]]):
    """Tensors, and classes of the packages that networks are made of."""

    known: Mapping[tuple[str, str], Callable[..., Any]] = {
        **TENSORS,
        ("torch_utils.persistence", "_reconstruct_persistent_obj"): _persistent,
        ("dnnlib.util", "EasyDict"): Dict,
        **dict.fromkeys([("builtins", "set"), ("__builtin__", "set")], _texts),
    }

    def __getitem__(self, key: tuple[str, str]) -> Callable[..., Any]:
        if key in self.known:
            return self.known[key]
        module, name = key
        if module.split(".")[0] in PACKAGES or f"{module}.".startswith("torch.nn."):
            return lambda *_: Thing(f"{module}.{name}")
        raise KeyError(key)

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return iter(self.known)

    def __len__(self) -> int:
        return len(self.known)


THINGS = _Things()
"""For ``legodiff.pickles.load``: data, tensors, and ``Thing``s."""
