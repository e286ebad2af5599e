import itertools
import math

import numpy as np
import pytest
import torch

from legodiff.diffusion import planner
from legodiff.diffusion.planner import Choice, Step, influences, trade_off
from legodiff.diffusion.samplers import SAMPLERS, heun
from legodiff.noise import karras_sigmas

STD = 0.5


def shrink(sigma):
    return STD**2 / (STD**2 + sigma**2)


def test_influences_of_euler_are_those_of_its_formula():
    sigmas = karras_sigmas(6)
    levels = sigmas.tolist()
    found = influences("euler", sigmas, STD)
    for step in range(6):
        # state' = (1 - ratio) * estimate + ratio * state, and estimate = shrink * state
        reach = 1 - levels[step + 1] / levels[step]
        for later in range(step + 1, 6):
            ratio = levels[later + 1] / levels[later]
            reach *= (1 - ratio) * shrink(levels[later]) + ratio
        assert list(found.values())[step] == pytest.approx(reach, rel=1e-5)


@pytest.mark.parametrize(
    ("name", "options"), [*((name, {}) for name in SAMPLERS), ("heun", {"churn": 8.0})]
)
def test_influences_are_those_of_an_error_at_one_level(name, options):
    sigmas = karras_sigmas(5)
    found = influences(name, sigmas, STD, options)
    noise = torch.zeros(1, 1, 1, 1, dtype=torch.float64)
    more = options | ({"draw": lambda: noise} if SAMPLERS[name].draws else {})
    for level, expected in found.items():

        def wrong(noisy, sigma, _, level=level):
            return shrink(sigma.double()) * noisy + (float(sigma[0]) == level)

        end = SAMPLERS[name].sample(wrong, noise, sigmas, **more).item()
        assert end == pytest.approx(expected, rel=1e-6)


def random_steps(seed, count, guidance):
    rng = np.random.default_rng(seed)
    steps = []
    for _ in range(count):
        flags = (False, True) if guidance else (False,)
        choices = [Choice((n,), guided) for n in range(3) for guided in flags]
        steps.append(
            Step(
                dict(zip(choices, rng.integers(1, 9, len(choices)).astype(float), strict=True)),
                dict(zip(choices, rng.random(len(choices)), strict=True)),
            )
        )
    return steps


def is_interval(choices):
    guided = "".join(str(int(choice.guided)) for choice in choices)
    return "1" not in guided or "0" not in guided.strip("0")


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("guidance", [False, True])
def test_it_finds_every_plan_that_no_other_beats(seed, guidance):
    steps = random_steps(seed, 4, guidance)
    everything = []
    for choices in itertools.product(*(step.costs for step in steps)):
        if is_interval(choices):
            cost = sum(step.costs[c] for step, c in zip(steps, choices, strict=True))
            error = sum(step.errors[c] for step, c in zip(steps, choices, strict=True))
            everything.append((cost, 0.25 + error))
    best = [
        (cost, error)
        for cost, error in sorted(everything)
        if not any(c <= cost and e < error for c, e in everything)
    ]
    found = trade_off(steps, error=0.25)
    assert [one.cost for one in found] == [cost for cost, _ in best]
    assert [one.error for one in found] == pytest.approx([error for _, error in best])
    for one in found:
        assert is_interval(one.choices)
        costs = [step.costs[c] for step, c in zip(steps, one.choices, strict=True)]
        errors = [step.errors[c] for step, c in zip(steps, one.choices, strict=True)]
        assert (sum(costs), 0.25 + sum(errors)) == pytest.approx((one.cost, one.error))


def test_many_plans_are_thinned_and_the_ends_stay(monkeypatch):
    steps = random_steps(0, 12, guidance=True)
    exact = trade_off(steps)
    monkeypatch.setattr(planner, "MOST", 8)
    thinned = trade_off(steps)
    assert len(thinned) <= 8 < len(exact)
    assert thinned[0].cost == exact[0].cost
    assert thinned[-1].error == pytest.approx(exact[-1].error, rel=0.3)
    for one in thinned:
        nearest = [other.error for other in exact if other.cost <= one.cost][-1]
        assert nearest <= one.error <= 1.5 * nearest


def test_the_sum_of_squares_is_what_independent_errors_do():
    """What the model of the error rests on: with an exact denoiser, errors at different levels."""
    sigmas = karras_sigmas(12)
    reach = influences("heun", sigmas, STD)
    size = {level: 0.01 / max(value, 0.02) for level, value in reach.items()}
    signs = {
        level: torch.randn(1, 1, 64, 64, generator=torch.Generator().manual_seed(number)).double()
        for number, level in enumerate(reach)
    }
    noise = torch.randn(1, 1, 64, 64, generator=torch.Generator().manual_seed(99)).double()

    def exact(noisy, sigma, _):
        return shrink(sigma.double()) * noisy

    def wrong(noisy, sigma, _):
        level = float(sigma[0])
        return exact(noisy, sigma, _) + size[level] * signs[level]

    change = heun(wrong, noise, sigmas) - heun(exact, noise, sigmas)
    expected = math.sqrt(sum((reach[level] * size[level]) ** 2 for level in reach))
    assert change.square().mean().sqrt().item() == pytest.approx(expected, rel=0.05)
