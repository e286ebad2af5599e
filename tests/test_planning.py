from dataclasses import replace

import numpy as np
import pytest
import torch
from test_pipeline import pipeline

from legodiff import LegoPipeline, LegoStack, SkipPlan
from legodiff.diffusion.planner import Choice, Found
from legodiff.model.cost import subset_flops
from legodiff.planning import _between, _grids, _other_solver, _Shared, _spread, _Trial, find_plans
from legodiff.plans import parse_milliseconds, read_curves
from legodiff.sampling import Method

FULL = Method(SkipPlan.full(3), 4)


@pytest.fixture(scope="module", params=[1.0, 2.0])
def planned(request):
    pipe = pipeline()
    full = replace(FULL, guidance=request.param)
    told = []
    curve = find_plans(pipe, full, images=6, batch=4, report=lambda *stage: told.append(stage))
    return pipe, full, curve, told


def test_points_cost_more_and_err_less_up_to_the_full_method(planned):
    pipe, full, curve, told = planned
    costs, errors = zip(*((p.flops, p.error) for p in curve.points), strict=True)
    assert list(costs) == sorted(set(costs))
    assert list(errors) == sorted(set(errors), reverse=True)
    assert curve.points[-1].method == full
    assert curve.points[-1].error == 0
    assert curve.full.flops == full.flops(pipe.sampling, pipe.stack.spec, (16, 16)) == costs[-1]
    assert {point.kind for point in curve.rivals} == {"fewer steps", "other solver", "paper"}
    stages = {name for name, _, _ in told}
    drawn = {"measuring", "fewer steps", "another solver", "checking", "the paper's rule"}
    assert stages == {"planning"} | drawn
    assert all((name, total, total) in told for name, _, total in told)


def test_guidance_that_reaches_no_noise_level_is_refused_before_anything_is_drawn():
    """Other grids may have levels in the interval, at which nothing was measured."""
    pipe, told = pipeline(), []
    full = Method(SkipPlan.full(3), 6, guidance=1.5, interval=(0.6, 0.9))
    assert not any(map(full.guides, full.levels(pipe.sampling)))
    wrong = (
        r"^guidance interval 0\.6 to 0\.9: none of the noise levels of 6 steps of heun lies in it; "
        r"give [^\n]*$"
    )
    with pytest.raises(ValueError, match=wrong):
        find_plans(pipe, full, 2, 2, lambda *stage: told.append(stage))
    assert not told


def test_where_nothing_can_be_left_out_the_curve_is_a_point():
    pipe = pipeline("tiny-pr-16")
    spec = replace(pipe.stack.spec, bricks=pipe.stack.spec.bricks[:1])
    pipe = LegoPipeline(LegoStack(spec).eval())
    (point,) = find_plans(pipe, Method(SkipPlan.full(1), 1), images=2, batch=2).points
    assert (point.error, point.method.steps) == (0, 1)


def test_no_rival_beats_it(planned):
    _, _, curve, _ = planned
    for rival in curve.rivals:
        better = [p for p in curve.points if p.flops <= rival.flops and p.error <= rival.error]
        assert better or rival.error >= 1


def test_errors_and_costs_are_those_of_drawing(planned):
    pipe, full, curve, _ = planned
    labels, seeds = [n % 3 for n in range(6)], [2**40 + n for n in range(6)]

    def draw(method):
        denoise = method.denoiser(pipe.stack, 3)
        return pipe.draw(denoise, labels, seeds, method, (16, 16))

    reference = draw(full)
    for point in curve.points:
        change = (draw(point.method) - reference) / pipe.stack.spec.sigma_data
        assert change.square().mean().sqrt().item() == pytest.approx(point.error, abs=1e-5)
        samples = pipe(
            labels,
            seeds,
            point.method.steps,
            point.method.guidance,
            point.method.sampler,
            plan=point.method.plan,
            guidance_interval=point.method.interval,
        )
        assert samples.flops == point.flops


def test_a_budget_takes_the_best_it_buys_and_says_what_it_was(planned, tmp_path):
    pipe, full, curve, _ = planned
    pipe.curves = (curve,)
    pipe.save_pretrained(tmp_path)
    again = LegoPipeline.from_pretrained(tmp_path)
    assert again.curves == (curve,)
    for point in curve.points[1:]:
        share = point.flops / curve.full.flops
        samples = again(0, 0, 4, full.guidance, budget=share)
        assert samples.method == point.method
        assert samples.flops == point.flops
        assert samples.predicted == point
        before = curve.points[curve.points.index(point) - 1]
        assert again(0, 0, 4, full.guidance, budget=share - 1e-6).method == before.method
    assert again(0, 0, 7, full.guidance).predicted is None  # more steps than anything planned
    with pytest.raises(ValueError, match="is too small: the cheapest plan takes 0"):
        again(0, 0, 4, full.guidance, budget=curve.points[0].flops / curve.full.flops / 2)


def test_a_time_takes_the_best_that_is_fast_enough(planned, monkeypatch):
    pipe, full, curve, _ = planned
    pipe.curves = (curve,)
    # A clock that counts: one millisecond for every GFLOP.
    monkeypatch.setattr(
        "legodiff.budgets.clock",
        lambda stack, sampling, size, batch: lambda m: m.flops(sampling, stack.spec, size) / 1e9,
    )
    point = curve.points[len(curve.points) // 2]
    samples = pipe(0, 0, 4, full.guidance, budget=f"{point.flops / 1e9 * 1.0001}ms")
    assert samples.method == point.method
    with pytest.raises(ValueError, match="is too small: the fastest plan takes"):
        pipe(0, 0, 4, full.guidance, budget="0.0000001ms")
    with pytest.raises(ValueError, match="a time needs plans"):
        pipe(0, 0, 5, full.guidance, budget="50ms")


def test_without_plans_for_these_arguments_it_is_the_papers_rule(planned):
    pipe, _, curve, _ = planned
    pipe.curves = (curve,)
    samples = pipe(0, 0, 8, budget=0.9)
    assert samples.plan in [pipe.paper_plan(n / 8, 8) for n in range(9)]
    assert samples.flops <= 0.9 * pipe(0, 0, 8).flops


def test_plans_of_another_model_are_refused(planned):
    _, full, curve, _ = planned
    other = pipeline()
    with torch.no_grad():
        other.stack.noise_embedding.first.weight += 0.01
    other.curves = (curve,)
    with pytest.raises(ValueError, match=r"^the plans are for the model [^\n]*run legodiff plan"):
        other(0, 0, 4, full.guidance, budget=0.5)
    assert other(0, 0, 4, full.guidance).nfe  # without a budget nobody asks for them


def test_broken_files_are_one_line(planned, tmp_path):
    pipe, _, curve, _ = planned
    pipe.curves = (curve,)
    pipe.save_pretrained(tmp_path)
    good = (tmp_path / "plans.json").read_text()
    for bad in (good[:50], good.replace('"error"', '"eror"'), "[]", '{"curves": 3}'):
        (tmp_path / "plans.json").write_text(bad)
        with pytest.raises(ValueError, match=r"^[^\n]*plans\.json cannot be read[^\n]*$"):
            LegoPipeline.from_pretrained(tmp_path)
    (tmp_path / "plans.json").unlink()
    assert read_curves(tmp_path) == ()


def test_the_table_holds_what_each_choice_changes(planned):
    pipe, full, _, _ = planned
    trial = _Trial(pipe, full, images=3, batch=2, report=lambda *_: None)
    losses = trial.losses()
    levels = list(dict.fromkeys(full.levels(pipe.sampling)))
    assert list(losses) == levels
    stack = pipe.stack
    noise = [
        torch.randn(1, 16, 16, generator=torch.Generator().manual_seed(2**40 + n)) for n in range(3)
    ]
    # At the first noise level the state is known: pure noise.
    level = torch.tensor([levels[0]] * 3)
    noisy, labels = torch.stack(noise) * levels[0], torch.arange(3)

    def estimate(bricks, guided):
        with torch.no_grad():
            with_class = stack(noisy, level, labels, bricks)
            without = stack(noisy, level, None, bricks)
        return without + full.guidance * (with_class - without) if guided else with_class

    best = estimate((0, 1, 2), full.guidance != 1)
    for choice, loss in losses[levels[0]].items():
        change = (estimate(choice.bricks, choice.guided) - best) / 0.5
        assert loss == pytest.approx(change.square().mean().item(), rel=1e-3, abs=1e-9)
    assert len(losses[levels[0]]) == (7 if full.guidance == 1 else 14)
    assert losses[levels[2]][Choice((0, 1, 2), full.guidance != 1)] == 0


def test_shared_estimates_are_the_stacks(planned):
    pipe, _, _, _ = planned
    noisy, sigma = torch.randn(2, 1, 16, 16), torch.tensor([0.3, 3.0])
    labels = torch.tensor([0, 2])
    calls = []
    pipe.stack.bricks[2].register_forward_hook(lambda *_: calls.append(1))
    shared = _Shared(pipe.stack)
    with torch.no_grad():
        for bricks in ((0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2)):
            mine = shared.estimates(noisy, sigma, labels, bricks)
            assert len(mine) == len(bricks)
            assert torch.allclose(mine[-1], pipe.stack(noisy, sigma, labels, bricks), atol=1e-6)
    own = sum(1 for bricks in ((2,), (0, 2), (1, 2), (0, 1, 2)) if bricks)
    assert len(calls) == 2 * own  # four passes of its own, and four of the stack beside it


def test_losses_between_levels_are_interpolated():
    choice = Choice((0,), False)
    losses = {1.0: {choice: 1e-4}, 100.0: {choice: 1e-2}}
    assert _between(losses, 10.0, choice) == pytest.approx(1e-3)
    assert _between(losses, 1.0, choice) == pytest.approx(1e-4)
    assert _between(losses, 1e3, choice) == pytest.approx(1e-2)
    assert _between(losses, 1e-3, choice) == pytest.approx(1e-4)


def test_plans_to_check_are_the_best_within_even_shares_of_the_full_cost():
    plans = [(10, 9.0), (22, 5.0), (24, 6.0), (25, 4.0), (26, 3.0), (74, 2.0), (100, 0.0)]
    found = [(Found(float(cost), error, ()), FULL) for cost, error in plans]
    assert [one.cost for one, _ in _spread(found, 100.0, 4)] == [25, 26, 74, 100]
    assert [one.cost for one, _ in _spread(found, 100.0, 20)] == [10, 25, 26, 74, 100]
    assert [one.cost for one, _ in _spread(found, 1000.0, 4)] == [100]
    # Of every number of steps, and of every solver, the best; of these the three best.
    other = [(Found(20.0 + n, 10.0 + n, ()), replace(FULL, steps=20 + n)) for n in range(4)]
    chosen = [one.cost for one, _ in _spread([*found, *other], 100.0, 4)]
    assert chosen == [25, 20, 21, 26, 74, 100]
    solver = [(Found(23.0, 4.5, ()), replace(FULL, sampler="dpmpp_2m"))]
    chosen = [one.cost for one, _ in _spread([*found, *other, *solver], 100.0, 4)]
    assert chosen == [25, 23, 20, 26, 74, 100]


def test_another_solver_is_tried_for_images_that_need_no_fresh_noise():
    pipe = pipeline()
    for full, most in ((FULL, 7), (replace(FULL, sampler="ddim", steps=9), 9)):
        tried = _other_solver(full, pipe)
        assert {method.sampler for method in tried} == {"dpmpp_2m"}
        assert [method.steps for method in tried] == list(range(2, most + 1))
        flops = full.flops(pipe.sampling, pipe.stack.spec, (16, 16))
        assert tried[-1].flops(pipe.sampling, pipe.stack.spec, (16, 16)) == flops
    kept = replace(FULL, guidance=2.0, interval=(0.1, 3.0), options={"s_max": 1.0})
    assert _other_solver(kept, pipe)[0].interval == (0.1, 3.0)
    assert _other_solver(replace(FULL, sampler="dpmpp_2m"), pipe) == []
    noisy = ("heun", {"churn": 5.0}), ("ddim", {"eta": 0.5}), ("ddpm", {})
    for sampler, options in noisy:
        assert _other_solver(replace(FULL, sampler=sampler, options=options), pipe) == []


def test_numbers_of_steps_to_try():
    assert _grids(2) == []
    assert _grids(18) == list(range(2, 18))
    many = _grids(250)
    assert many[0] == 2
    assert many[-1] < 250
    assert len(many) <= 16
    assert np.all(np.diff(many) > 0)


@pytest.mark.parametrize(("text", "value"), [("50ms", 50.0), ("1.5s", 1500.0), (" .5ms", 0.5)])
def test_times_are_read(text, value):
    assert parse_milliseconds(text) == value


@pytest.mark.parametrize("text", ["50", "ms", "-1ms", "0ms", "1h", "infs"])
def test_other_times_are_refused(text):
    with pytest.raises(ValueError, match=r"give a share such as 0\.5, or a time such as 50ms"):
        parse_milliseconds(text)


def test_flops_count_guided_levels_twice():
    pipe = pipeline()
    method = replace(FULL, guidance=2.0, interval=(0.5, 5.0))
    inside = [0.5 <= level <= 5.0 for level in method.levels(pipe.sampling)]
    one = subset_flops(pipe.stack.spec, (0, 1, 2), (16, 16))
    expected = one * (len(inside) + sum(inside))
    assert method.flops(pipe.sampling, pipe.stack.spec, (16, 16)) == expected
    assert pipe(0, 0, 4, 2.0, guidance_interval=(0.5, 5.0)).flops == expected
