"""What an experiment takes, told before it is begun: data, FLOPs, hours on one GPU."""

from typing import NamedTuple

from legodiff.config import load_config
from legodiff.model.cost import subset_flops
from legodiff.model.spec import StackSpec
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


def efforts(scale: Scale) -> list[Effort]:
    """Of every model of an experiment, counted on the meta device.

    That of a model on a base counts the base as well, through which every image goes.
    """
    found = []
    for model in scale.models:
        config = load_config(model.recipe, model.changes)
        spec = _spec(model, scale)
        evaluations = 2 * scale.steps - 1 if scale.sampler == "heun" else scale.steps
        calls = sum(evaluations * (1 if guidance == 1 else 2) for guidance in scale.guidances)
        flops = subset_flops(spec, tuple(range(len(spec.bricks))), spec.image_size)
        found.append(
            Effort(
                model.name,
                model.recipe,
                config.train.images,
                float(training_flops(spec, config.train) * config.train.images),
                float(flops * calls * scale.samples),
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
