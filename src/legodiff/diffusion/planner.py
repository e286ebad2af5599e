"""Planning: which bricks to run at which noise level, for the least error at every cost.

Leaving bricks out at a noise level changes the estimate there, and the sampler carries a part of
that change into the image. To first order the squares add up, so a plan's squared error is

    error(steps) + sum over levels of  influence(level)² * loss(level, choice)

and the best plans for all costs follow from dynamic programming over the levels. ``loss`` is
measured on the model, ``influence`` is a property of the sampler, ``error(steps)`` is that of the
full model with fewer steps. Nothing here imports a model.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from legodiff.diffusion.samplers import SAMPLERS, levels_called

MOST = 4096  # plans kept after each level; beyond it, those nearest in cost are merged


class Choice(NamedTuple):
    """What may run at a noise level."""

    bricks: tuple[int, ...]
    guided: bool


class Step(NamedTuple):
    """One noise level of a sampler, and what each choice there costs and loses."""

    costs: Mapping[Choice, float]
    """Of all calls at this level together."""
    errors: Mapping[Choice, float]
    """Squared, as they arrive in the image."""


class Found(NamedTuple):
    """A plan on the trade-off: no other costs less and errs less."""

    cost: float
    error: float
    choices: tuple[Choice, ...]


def influences(
    sampler: str, sigmas: Tensor, sigma_data: float, options: Mapping[str, Any] | None = None
) -> dict[float, float]:
    """Noise level -> by how much the image changes if every estimate there changes by one.

    Exact for Gaussian data of deviation ``sigma_data``, whose denoiser is linear: the sampler runs
    once, on as many copies as it makes calls, and in each copy another call is off by one.
    """
    levels = levels_called(sampler, sigmas, **(options or {}))
    calls = iter(range(len(levels)))

    def denoise(noisy: Tensor, sigma: Tensor, _: Tensor | None) -> Tensor:
        shrink = sigma_data**2 / (sigma_data**2 + sigma.double() ** 2)
        estimate = shrink.view(-1, 1, 1, 1) * noisy
        estimate[next(calls)] += 1
        return estimate

    nothing = torch.zeros(len(levels), 1, 1, 1, dtype=torch.float64)
    draw = {"draw": lambda: nothing} if SAMPLERS[sampler].draws else {}
    ends = SAMPLERS[sampler].sample(denoise, nothing, sigmas, **(options or {}), **draw)
    total: Counter[float] = Counter()
    for level, end in zip(levels, ends.flatten().tolist(), strict=True):
        total[level] += end  # calls at one level err alike, so they add up
    return dict(total)


def trade_off(steps: Sequence[Step], error: float = 0.0) -> list[Found]:
    """All plans that are best at their cost, from the cheapest on; ``error`` is there anyway.

    The noise levels at which there is guidance are an interval: unguided, then guided, then
    unguided. Dynamic programming over the levels: of plans for the first levels that are in the
    same phase, one that costs and errs more than another is never part of a best plan. Exact while
    fewer than 4,096 of them are left.
    """
    before, within, after = range(3)  # phases: of guidance, as the noise falls
    layers: list[tuple[np.ndarray, list[Choice]]] = []
    # A row is a plan for the levels so far: cost, error, phase, row of its parent, last choice.
    plans = np.array([[0.0, error, before, -1, -1]])
    for step in steps:
        choices = list(step.costs)
        grown = []
        for number, choice in enumerate(choices):
            parents = np.arange(len(plans))
            if choice.guided:
                parents = parents[plans[:, 2] != after]
            more = plans[parents]
            more[:, 2] = within if choice.guided else np.where(more[:, 2] == before, before, after)
            more[:, 0] += step.costs[choice]
            more[:, 1] += step.errors[choice]
            more[:, 3], more[:, 4] = parents, number
            grown.append(more)
        rows = np.concatenate(grown)
        plans = np.concatenate([_best(rows[rows[:, 2] == phase]) for phase in range(3)])
        layers.append((plans, choices))

    found = []
    for best in _best(plans):
        row, chosen = best, []
        for number in reversed(range(len(layers))):
            chosen.append(layers[number][1][int(row[4])])
            row = layers[number - 1][0][int(row[3])] if number else row
        found.append(Found(float(best[0]), float(best[1]), tuple(reversed(chosen))))
    return found


def _best(rows: np.ndarray) -> np.ndarray:
    """The rows that no other row beats in both cost and error, by rising cost."""
    rows = rows[np.lexsort((rows[:, 1], rows[:, 0]))]
    least = np.minimum.accumulate(np.append(np.inf, rows[:-1, 1])) if len(rows) else np.empty(0)
    rows = rows[rows[:, 1] < least]
    if len(rows) <= MOST:
        return rows
    edges = np.linspace(rows[0, 0], rows[-1, 0], MOST)
    return rows[np.unique(np.searchsorted(rows[:, 0], edges, side="right") - 1)]
