"""Diffusion models made of stackable, skippable LEGO bricks (Zheng et al., ICLR 2024)."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from legodiff.diffusion.skipping import SkipPlan
    from legodiff.model.presets import preset
    from legodiff.model.spec import BrickSpec, StackSpec
    from legodiff.model.stack import LegoStack
    from legodiff.pipeline import LegoPipeline

__version__ = "0.1.0"
__all__ = ["BrickSpec", "LegoPipeline", "LegoStack", "SkipPlan", "StackSpec", "preset"]

_HOMES = {
    "BrickSpec": "model.spec",
    "LegoPipeline": "pipeline",
    "LegoStack": "model.stack",
    "SkipPlan": "diffusion.skipping",
    "StackSpec": "model.spec",
    "preset": "model.presets",
}


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first used, so that ``legodiff --help`` needs no torch."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
