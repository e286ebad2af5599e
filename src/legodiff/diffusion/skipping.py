"""Which bricks run at which noise level: a plan is data, and skipping is a wrapper."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import sqrt
from typing import Any

from torch import Tensor

from legodiff.diffusion import Denoise


@dataclass(frozen=True)
class SkipPlan:
    """Noise level -> bricks, as bands of noise.

    ``bands`` is ((from_sigma, bricks), ...) with rising ``from_sigma``, the first 0: ``bricks`` run
    from that noise level up to the next band's. Raises ValueError for bands that are not so.
    """

    bands: tuple[tuple[float, tuple[int, ...]], ...]

    def __post_init__(self) -> None:
        bands = tuple((float(low), tuple(sorted(set(bricks)))) for low, bricks in self.bands)
        lows = [low for low, _ in bands]
        if not bands or lows[0] != 0 or lows != sorted(set(lows)) or not all(b for _, b in bands):
            raise ValueError(
                f"skip plan {self.bands}: bands must be (from_sigma, bricks) with rising "
                "from_sigma, the first 0, and at least one brick each"
            )
        object.__setattr__(self, "bands", bands)

    def bricks(self, sigma: float) -> tuple[int, ...]:
        """The bricks that run at a noise level. Raises ValueError if it is none."""
        if not sigma >= 0:
            raise ValueError(f"noise level {sigma} is none; it must be 0 or more")
        return next(bricks for low, bricks in reversed(self.bands) if low <= sigma)

    @classmethod
    def at_levels(cls, bricks: Mapping[float, Sequence[int]]) -> "SkipPlan":
        """What each noise level is given; in between, the nearer one's, by ratio."""
        levels = sorted(bricks)
        bands: list[tuple[float, tuple[int, ...]]] = [(0.0, tuple(bricks[levels[0]]))]
        for lower, level in pairwise(levels):
            if tuple(bricks[level]) != bands[-1][1]:
                bands.append((sqrt(lower * level), tuple(bricks[level])))
        return cls(tuple(bands))

    @classmethod
    def full(cls, count: int) -> "SkipPlan":
        """All of ``count`` bricks at every noise level."""
        return cls(((0.0, tuple(range(count))),))

    @classmethod
    def skip_low_noise(
        cls, count: int, fraction: float, sigmas: Sequence[float] | Tensor
    ) -> "SkipPlan":
        """The paper's rule for progressive growth: no top brick in the last steps.

        ``fraction`` in [0, 1] of the steps of the grid ``sigmas`` (steps + 1 levels, falling to 0).
        """
        skipped = _steps(fraction, sigmas)
        return cls._top_skipped(count, sigmas, len(sigmas) - 1 - skipped, below=True)

    @classmethod
    def skip_high_noise(
        cls, count: int, fraction: float, sigmas: Sequence[float] | Tensor
    ) -> "SkipPlan":
        """The paper's rule for progressive refinement: no top brick in the first steps."""
        return cls._top_skipped(count, sigmas, _steps(fraction, sigmas), below=False)

    @classmethod
    def _top_skipped(
        cls, count: int, sigmas: Sequence[float] | Tensor, step: int, below: bool
    ) -> "SkipPlan":
        """Break before the given step: the top brick is left out below it or above it."""
        if count < 2:
            raise ValueError("a stack of one brick has none to skip")
        every, rest = tuple(range(count)), tuple(range(count - 1))
        low, high = (rest, every) if below else (every, rest)
        if step == 0:
            return cls(((0.0, low),))
        if step == len(sigmas) - 1:
            return cls(((0.0, high),))
        between = (float(sigmas[step - 1]) * float(sigmas[step])) ** 0.5
        return cls(((0.0, low), (between, high)))

    def to_dict(self) -> dict[str, Any]:
        return {"bands": [[low, list(bricks)] for low, bricks in self.bands]}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "SkipPlan":
        if set(values) != {"bands"}:
            raise ValueError(f"skip plan: expected the key bands, found {', '.join(values)}")
        return cls(tuple((low, tuple(bricks)) for low, bricks in values["bands"]))


def _steps(fraction: float, sigmas: Sequence[float] | Tensor) -> int:
    if not 0 <= fraction <= 1:
        raise ValueError(f"fraction of steps to skip is {fraction}; it must be from 0 to 1")
    return int(fraction * (len(sigmas) - 1) + 0.5)


def skipping(stack: Callable[..., Tensor], plan: SkipPlan) -> Denoise:
    """A denoiser that runs only the bricks the plan names for the noise level at hand.

    ``stack`` is a denoiser that takes ``bricks=``. A batch may mix noise levels only within a band.
    """

    def denoise_skipping(noisy: Tensor, sigma: Tensor, labels: Tensor | None) -> Tensor:
        bricks = {plan.bricks(level) for level in set(sigma.tolist())}
        if len(bricks) > 1:
            raise ValueError("one call mixes noise levels of different bands of the skip plan")
        return stack(noisy, sigma, labels, bricks=bricks.pop())

    return denoise_skipping
