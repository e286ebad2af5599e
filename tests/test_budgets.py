from dataclasses import replace

import pytest
import torch

from legodiff import LegoStack, SkipPlan, budgets, preset
from legodiff.budgets import by_budget, clock, cost, paper_plan, paper_within
from legodiff.diffusion.canvas import Windows
from legodiff.model.cost import subset_flops
from legodiff.plans import Curve, Point
from legodiff.sampling import Method, Sampling

SPEC = preset("tiny-pr-16", channels=1, classes=3)
SIZE = (16, 16)
FULL = Method(SkipPlan.full(3), 4)


@pytest.fixture(scope="module")
def stack():
    torch.manual_seed(0)
    return LegoStack(SPEC).eval()


def flops(method):
    return method.flops(Sampling(), SPEC, SIZE)


def curve(*methods):
    errors = range(len(methods), 0, -1)
    points = [Point(m, flops(m), e / 10) for m, e in zip(methods, errors, strict=True)]
    return Curve("model", Point(FULL, flops(FULL), 0.0), 1, "here", tuple(points))


@pytest.mark.parametrize(("name", "low", "high"), [("pr", 3, 2), ("pg", 2, 3)])
def test_the_papers_rule_depends_on_the_top_brick(name, low, high):
    spec = preset(f"tiny-{name}-16")
    sigmas = Sampling().sigmas(8)
    plan = paper_plan(spec, sigmas, 0.5)
    assert [len(plan.bricks(float(at))) for at in sigmas[:-1]] == [high] * 4 + [low] * 4
    assert paper_plan(spec, sigmas, 0) == SkipPlan.full(3)
    assert paper_plan(spec, sigmas, 1) == SkipPlan(((0.0, (0, 1)),))


def test_the_papers_rule_skips_as_few_steps_as_it_takes():
    shares = [
        flops(replace(FULL, plan=paper_plan(SPEC, Sampling().sigmas(4), n / 4))) for n in range(5)
    ]
    for budget in (1.0, 0.95, 0.9, shares[-1] / shares[0]):
        method = paper_within(FULL, budget, Sampling(), SPEC, SIZE)
        assert flops(method) == next(s for s in shares if s <= budget * shares[0])
    with pytest.raises(ValueError, match=f"cheapest plan takes {shares[-1] / shares[0]:.3f}"):
        paper_within(FULL, 0.1, Sampling(), SPEC, SIZE)
    with pytest.raises(ValueError, match=r"it is a share of the full FLOPs, in \(0, 1\]"):
        paper_within(FULL, 1.1, Sampling(), SPEC, SIZE)


def test_a_budget_takes_what_was_planned_if_there_is_a_plan(stack, monkeypatch):
    half = replace(FULL, steps=2)
    found = curve(half, FULL)
    share = flops(half) / flops(FULL)
    assert by_budget(FULL, share, found, stack, Sampling(), 4) == half
    assert by_budget(FULL, 1.0, found, stack, Sampling(), 4) == FULL
    with pytest.raises(ValueError, match="cheapest plan takes"):
        by_budget(FULL, share - 0.01, found, stack, Sampling(), 4)
    monkeypatch.setattr(budgets, "clock", lambda *_: lambda method: 10.0 * method.steps)
    assert by_budget(FULL, "39ms", found, stack, Sampling(), 4) == half
    assert by_budget(FULL, "0.04s", found, stack, Sampling(), 4) == FULL
    with pytest.raises(ValueError, match="the fastest plan takes 20ms"):
        by_budget(FULL, "19ms", found, stack, Sampling(), 4)
    with pytest.raises(ValueError, match="a time needs plans"):
        by_budget(FULL, "19ms", None, stack, Sampling(), 4)
    assert by_budget(FULL, 1.0, None, stack, Sampling(), 4) == FULL


def test_costs_count_windows_bricks_and_guidance():
    method = Method(SkipPlan(((0.0, (0, 1, 2)), (1.0, (0,)))), 4, guidance=2.0, interval=(1.0, 90))
    sigmas = [float(at) for at in Sampling().sigmas(4)[:-1]]
    calls = [sigmas[0], *(at for at in sigmas[1:] for _ in range(2))]  # Heun's
    for canvas, windows, looks in (((16, 16), None, 1), ((32, 40), Windows((16, 16)), 3 * 4)):
        evaluations = [looks * (2 if at >= 1 else 1) for at in calls]
        bricks = [(0,) if at >= 1 else (0, 1, 2) for at in calls]
        assert cost(method, Sampling(), SPEC, canvas, windows) == (
            sum(evaluations),
            sum(n * subset_flops(SPEC, b, SIZE) for n, b in zip(evaluations, bricks, strict=True)),
        )


def test_a_clock_adds_up_the_time_of_each_evaluation(stack, monkeypatch):
    asked = []

    def seconds(stack, bricks, size, batch):
        asked.append((bricks, size, batch))
        return 0.001 * len(bricks)

    monkeypatch.setattr(budgets, "subset_seconds", seconds)
    tell = clock(stack, Sampling(), SIZE, 4)
    plan = SkipPlan(((0.0, (0, 1, 2)), (1.0, (0,))))
    high = sum(1 for at in FULL.levels(Sampling()) if at >= 1)
    low = len(FULL.levels(Sampling())) - high
    assert tell(replace(FULL, plan=plan)) == pytest.approx(high + 3 * low)
    assert tell(replace(FULL, guidance=2.0)) == pytest.approx(2 * 3 * (high + low))
    assert sorted(asked) == [((0,), SIZE, 4), ((0, 1, 2), SIZE, 4)]  # each is timed once
