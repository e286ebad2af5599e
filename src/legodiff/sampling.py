"""How images are drawn: a range of noise levels, and a method that walks through it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from math import inf, isfinite
from typing import Any

from torch import Tensor

from legodiff.diffusion import Denoise
from legodiff.diffusion.guidance import EVERYWHERE, guided, self_guided
from legodiff.diffusion.samplers import SAMPLERS, levels_called
from legodiff.diffusion.skipping import SkipPlan, skipping
from legodiff.labels import whole
from legodiff.model.cost import subset_flops
from legodiff.model.spec import StackSpec
from legodiff.noise import ddpm_strided_sigmas, karras_sigmas
from legodiff.store import build


@dataclass(frozen=True)
class Sampling:
    """Where sampling starts and ends, and how its steps are spread (EDM's defaults)."""

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not isinstance(value, int | float) or isinstance(value, bool):
                raise ValueError(f"sampling: {name} is {value!r}; it must be a number")
        self.sigmas(2)  # raises for ranges that are none

    def sigmas(self, steps: int, sampler: str = "heun") -> Tensor:
        """The noise levels of a sampler, float64 (steps + 1,), falling to 0.

        EDM's grid, or for the samplers of DDPM the part of its table up to ``sigma_max``. Raises
        ValueError for an unknown sampler, and for steps that are none.
        """
        _check_sampler(sampler)
        steps = one_or_more("steps", steps)
        if SAMPLERS[sampler].grid == "ddpm":
            return ddpm_strided_sigmas(steps, self.sigma_max)
        return karras_sigmas(steps, self.sigma_min, self.sigma_max, self.rho)


@dataclass(frozen=True)
class Method:
    """All that decides how a model draws, but for the labels, the seeds and the canvas.

    Raises ValueError, in one line, for what cannot be.
    """

    plan: SkipPlan
    """Which bricks run at which noise level."""
    steps: int = 18
    sampler: str = "heun"
    options: Mapping[str, float] = field(default_factory=dict)
    """Of the sampler: churn, s_min, s_max and s_noise of heun, eta of ddim."""
    guidance: float = 1.0
    """Scale of classifier-free guidance; 1 is none and costs one evaluation a call."""
    interval: tuple[float, float] = EVERYWHERE
    """Noise levels (from, to) that are guided, by either kind of guidance."""
    self_guidance: float = 1.0
    """Scale of guidance by the lowest brick's own estimate; 1 is none."""

    def __post_init__(self) -> None:
        _check_sampler(self.sampler)
        object.__setattr__(self, "steps", one_or_more("steps", self.steps))
        known = SAMPLERS[self.sampler].options
        for name, value in self.options.items():
            if name not in known:
                takes = ", ".join(known) if known else "none"
                raise ValueError(f"{self.sampler} has no option {name!r}; it takes {takes}")
            if not isinstance(value, int | float) or not value >= 0:
                raise ValueError(f"{name} is {value!r}; it must be a number from 0 on")
        if self.options.get("eta", 0) > 1:
            raise ValueError(f"eta is {self.options['eta']}; it must be from 0 to 1")
        for name in ("guidance", "self_guidance"):
            scale = getattr(self, name)
            if not isinstance(scale, int | float) or not isfinite(scale) or abs(scale) > 1000:
                raise ValueError(f"{name} is {scale}; it must be a number from -1000 to 1000")
        object.__setattr__(self, "interval", _interval(self.interval))

    @property
    def deterministic(self) -> bool:
        """Whether no fresh noise is drawn on the way: then every solver nears the same image."""
        return self.sampler != "ddpm" and not any(map(self.options.get, ("churn", "eta")))

    def levels(self, sampling: Sampling) -> list[float]:
        """The noise levels at which the denoiser is called, in order."""
        return levels_called(
            self.sampler, sampling.sigmas(self.steps, self.sampler), **self.options
        )

    def guides(self, sigma: float) -> bool:
        """Whether a noise level is one of those that are guided."""
        return self.interval[0] <= sigma <= self.interval[1]

    def evaluations(self, sigma: float) -> int:
        """How often the network is evaluated for one call at a noise level."""
        return 2 if self.guidance != 1 and self.guides(sigma) else 1

    def flops(self, sampling: Sampling, spec: StackSpec, size: tuple[int, int]) -> int:
        """FLOPs of an image of ``size``, 2 x multiply-accumulates."""
        return sum(
            self.evaluations(sigma) * subset_flops(spec, self.plan.bricks(sigma), size)
            for sigma in self.levels(sampling)
        )

    def denoiser(self, stack: Any, classes: int) -> Denoise:
        """The stack under this plan and guidance; class ``classes`` means no class."""
        guiding = self_guided(stack, self.self_guidance, interval=self.interval)
        return guided(skipping(guiding, self.plan), self.guidance, classes, self.interval)

    def to_dict(self) -> dict[str, Any]:
        """As JSON data, without what is at its default; infinity, which JSON lacks, is null."""
        values: dict[str, Any] = {"sampler": self.sampler, "steps": self.steps}
        if self.options:
            values["options"] = {name: _finite(value) for name, value in self.options.items()}
        values["guidance"] = self.guidance
        if self.interval != EVERYWHERE:
            values["interval"] = [_finite(at) for at in self.interval]
        if self.self_guidance != 1:
            values["self_guidance"] = self.self_guidance
        return {**values, "plan": self.plan.to_dict()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Method":
        """The inverse of ``to_dict``. Raises ValueError for anything else."""
        values = {**values, "plan": SkipPlan.from_dict(values.get("plan", {}))}
        if "interval" in values:
            low, high = values["interval"]
            values["interval"] = (low, inf if high is None else high)
        if isinstance(options := values.get("options"), Mapping):
            values["options"] = {k: inf if v is None else v for k, v in options.items()}
        return build(cls, "method", values)


def one_or_more(name: str, value: Any) -> int:
    """A whole number from 1 on, also numpy's or torch's. Raises ValueError, naming it."""
    number = whole(value)
    if number is None or number < 1:
        raise ValueError(f"{name} is {value!r}; it must be a whole number from 1 on")
    return number


def _check_sampler(name: Any) -> None:
    if name not in list(SAMPLERS):  # a list: what cannot be hashed is none of them either
        raise ValueError(f"unknown sampler {name!r}; choose from {', '.join(SAMPLERS)}")


def _interval(given: Any) -> tuple[float, float]:
    """Two rising noise levels, from 0 on. Raises ValueError for anything else."""
    two = isinstance(given, list | tuple) and len(given) == 2
    if two and all(isinstance(at, int | float) for at in given):
        low, high = given
        if 0 <= low < high:
            return low, high
        told = f"{low:g} to {high:g}"
    else:
        told = repr(given)
    raise ValueError(f"guidance interval {told}: give two noise levels, the lower one first")


def _finite(value: float) -> float | None:
    """For JSON, which has no infinity."""
    return value if isfinite(value) else None
