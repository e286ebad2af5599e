"""What an experiment is made of."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from legodiff.diffusion.canvas import Windows
from legodiff.diffusion.skipping import SkipPlan
from legodiff.sampling import Method


@dataclass(frozen=True)
class Model:
    """Something to train."""

    name: str
    recipe: str
    changes: tuple[str, ...] = ()
    """As of ``--set``."""
    x: float | str | None = None
    """Where it stands on the axis of a figure."""
    line: str = ""
    """The line of the figure that it is on."""
    base: str | None = None
    """The model, by name, that its first brick is."""
    after: str | None = None
    """The model, by name, that it goes on from."""


@dataclass(frozen=True)
class Scale:
    """An experiment at one size: data, models, and how they are judged."""

    data: str
    """Path or name, as of ``--data``."""
    models: tuple[Model, ...]
    reference: str | None = None
    """What images are compared with, where it is not the data: those of latents."""
    features: str = "digits"
    samples: int = 2000
    steps: int = 18
    sampler: str = "heun"
    options: Mapping[str, float] = field(default_factory=dict)
    guidances: tuple[float, ...] = (1.0,)
    labelled: bool = True
    """Whether images are drawn class by class; else without a class."""
    image: tuple[int, int] = (1, 10)
    """Channels and classes of the data: known beforehand, so that a cost can be told."""
    factor: int = 1
    """Pixels along the side of a latent, known beforehand as well; 1 for pixels."""
    more: Mapping[str, Any] = field(default_factory=dict)
    """Settings of its kind alone."""

    def method(self, bricks: int, guidance: float = 1.0) -> Method:
        """How a model of so many bricks draws with all of them."""
        return Method(
            plan=SkipPlan.full(bricks),
            steps=self.steps,
            sampler=self.sampler,
            options=dict(self.options),
            guidance=guidance,
        )


class Drawing(NamedTuple):
    """What a kind of experiment draws with each model to judge it."""

    images: int
    method: Method
    canvas: tuple[int, int] | None = None
    """In the model's own pixels; None is the training size."""
    windows: Windows | None = None
    """How it is looked at, if not in the usual way."""


@dataclass(frozen=True)
class Experiment:
    """One table or figure of the paper, or a question that it leaves open."""

    title: str
    kind: str
    """Who measures it and writes its page: a module of this package, with ``run(experiment,
    setting)`` and ``drawings(scale, pipe)``."""
    small: Scale
    paper: Scale
    printed: Mapping[str, str] = field(default_factory=dict)
    """What the paper prints, by its name of a model, or by several: "LEGO-S-PG, LEGO-PG"."""
    note: str = ""
    """What a reader must know when they compare."""

    def known(self, model: str) -> str:
        """What the paper prints of a model; empty if nothing."""
        return next((t for names, t in self.printed.items() if model in names.split(", ")), "")
