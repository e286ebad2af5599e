"""What an experiment takes, told before it is begun: data, FLOPs, hours on one GPU."""

from importlib import import_module
from typing import NamedTuple

import torch

from legodiff.config import load_config
from legodiff.model.spec import StackSpec
from legodiff.model.stack import LegoStack
from legodiff.pipeline import LegoPipeline
from legodiff.reproduce.experiment import Model, Scale
from legodiff.train.estimate import training_flops

PEAK, SHARE = 798e12, 0.4
"""FLOP/s of bf16 products measured on one H100, and how much of it a run is taken to reach."""


class Effort(NamedTuple):
    """Of one model, for one seed."""

    model: str
    recipe: str
    images: int
    """That it sees in training."""
    training: float
    """FLOPs, forward and backward."""
    drawing: float
    """FLOPs of all images that it is judged by."""

    @property
    def hours(self) -> float:
        """On one H100."""
        return (self.training + self.drawing) / (PEAK * SHARE) / 3600


def efforts(scale: Scale, kind: str = "quality") -> list[Effort]:
    """Of every model of an experiment of some kind, counted on the meta device.

    That of a model on a base counts the base as well, through which every image goes.
    """
    drawings = import_module(f"legodiff.reproduce.{kind}").drawings
    found = []
    for model in scale.models:
        config = load_config(model.recipe, model.changes)
        spec = _spec(model, scale)
        with torch.device("meta"):  # weights that hold nothing: it is only counted with
            pipe = LegoPipeline(LegoStack(spec))
        drawn = [
            one.images * pipe.cost(one.method, one.canvas or spec.image_size, one.windows)[1]
            for one in drawings(scale, pipe)
        ]
        found.append(
            Effort(
                model.name,
                model.recipe,
                config.train.images,
                float(training_flops(spec, config.train) * config.train.images),
                float(sum(drawn)),
            )
        )
    return found


def _spec(model: Model, scale: Scale) -> StackSpec:
    """The network, with that of its base below."""
    spec = load_config(model.recipe, model.changes).model.spec(*scale.image)
    if model.base is None:
        return spec
    base = _spec(next(one for one in scale.models if one.name == model.base), scale)
    return StackSpec.from_dict({**spec.to_dict(), "bricks": [*base.bricks, *spec.bricks]})
