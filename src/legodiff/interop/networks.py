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
from legodiff.pickles import RefusedError

PACKAGES = ("timm", "training", "torch_utils", "dnnlib", "argparse")
NESTED = 32  # modules in modules, at most


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

    def __getitem__(self, name: str) -> Any:
        """An attribute. Raises ValueError if it has none of the name."""
        if name not in self.state:
            raise ValueError(f"{self.name} has no {name}")
        return self.state[name]

    @property
    def modules(self) -> dict[str, Any]:
        return dict(self.state.get("_modules") or {})

    def find(self, name: str) -> Any:
        """The first attribute of that name in it or, in order, in the modules inside; or None."""
        inner = (m.find(name) for m in self.modules.values() if isinstance(m, Thing))
        return self.state.get(name, next((found for found in inner if found is not None), None))

    def tensors(self, nested: int = 0) -> Iterator[tuple[str, Tensor]]:
        """Parameters and buffers by their dotted names, as in ``state_dict``."""
        if nested > NESTED:
            raise ValueError(f"{self.name}: modules within modules without end")
        for kind in ("_parameters", "_buffers"):
            for name, tensor in (self.state.get(kind) or {}).items():
                if isinstance(tensor, Tensor):
                    yield name, tensor
        for name, module in self.modules.items():
            if isinstance(module, Thing):
                for inner, tensor in module.tensors(nested + 1):
                    yield f"{name}.{inner}", tensor


def _persistent(meta: Any) -> Thing:
    """An object in EDM's format: a dict of its source code, class name and attributes."""
    if not isinstance(meta, dict) or meta.get("type") != "class":
        raise RefusedError("an object in another version of EDM's format")
    thing = Thing(str(meta.get("class_name")))
    thing.__setstate__(meta.get("state"))
    return thing


def _texts(values: Any = ()) -> set[str]:
    return set(map(str, values))


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
