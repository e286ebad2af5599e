"""Finding the dial of a model: what leaving bricks out loses at each noise level, and the plans
that lose least at every cost, over solver, steps, bricks and guidance together.

Everything is measured on the model's own trajectories; no data are needed. The plans found are
then drawn, and judged by their true difference from the full method's images of the same seeds.
"""

import platform
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import combinations, pairwise
from math import exp, inf, log, sqrt
from typing import Any

import torch
from torch import Tensor

from legodiff.budgets import clock
from legodiff.diffusion import Denoise
from legodiff.diffusion.planner import Choice, Found, Step, influences, trade_off
from legodiff.diffusion.skipping import SkipPlan
from legodiff.drawing import finite
from legodiff.model.cost import subset_flops
from legodiff.model.stack import LegoStack
from legodiff.pipeline import LegoPipeline
from legodiff.plans import Curve, Point
from legodiff.sampling import Method

Report = Callable[[str, float, float], None]
"""Told the name of a stage, how much of it is done, and of how much."""
Losses = dict[float, dict[Choice, float]]
"""Noise level -> what runs -> mean squared change of the estimate, in deviations of the data."""

FIRST_SEED = 2**40  # of the images that plans are measured on: none that a user would draw
GRIDS = 16  # numbers of steps that are tried, at most
CHECKED = 20  # plans that are drawn and judged: the best within 1/20, 2/20 ... of the full cost
TRIED = 3  # solvers and numbers of steps for each of them
PAPER = 8  # break points of the paper that are
SOLVER = "dpmpp_2m"  # second order for one evaluation a step: the solver tried beside the given one
WORST = 1.0  # error of a plan worth keeping: two images that have nothing in common differ by 1.4


def find_plans(
    pipe: LegoPipeline,
    full: Method,
    images: int = 64,
    batch: int = 16,
    report: Report | None = None,
) -> Curve:
    """The trade-off of a model for a full method, measured on as many images.

    ``full`` is a method with all bricks; nothing costs more. Where there is nothing to leave out,
    as of one brick in one step, the curve is a single point. Raises ValueError for guidance in an
    interval that holds none of the method's noise levels.
    """
    if full.guidance != 1 and not any(map(full.guides, full.levels(pipe.sampling))):
        low, high = full.interval
        raise ValueError(
            f"guidance interval {low:g} to {high:g}: none of the noise levels of {full.steps} "
            f"steps of {full.sampler} lies in it; give a wider interval, or leave out the guidance"
        )
    trial = _Trial(pipe, full, images, batch, report or (lambda *_: None))
    losses = trial.losses()
    fewer = [
        trial.judge(replace(full, steps=steps), "fewer steps")
        for steps in trial.each("fewer steps", _grids(full.steps))
    ]
    other = [
        trial.judge(method, "other solver")
        for method in trial.each("another solver", _other_solver(full, pipe))
    ]
    found: list[tuple[Found, Method]] = []
    for point in trial.each("planning", [*fewer, *other, trial.full]):
        table = _table(pipe, point.method, losses)
        found += [(one, point.method) for one in trade_off(list(table.values()), point.error**2)]
    planned = [
        trial.judge(_method(one, method, pipe), "planned", predicted=sqrt(one.error))
        for one, method in trial.each("checking", _spread(found, trial.full.flops, CHECKED))
    ]
    paper = [
        trial.judge(replace(full, plan=plan), "paper")
        for plan in trial.each("the paper's rule", _paper(pipe, full))
    ]
    return Curve(
        model=pipe.fingerprint,
        full=trial.full,
        images=images,
        machine=f"{_machine(pipe.device)}, batches of {batch}",
        points=_best([*fewer, *other, *planned, *paper, trial.full]),
        rivals=(*fewer, *other, *paper),
    )


class _Trial:
    """Images of the full method, and how far others are from them."""

    def __init__(
        self, pipe: LegoPipeline, full: Method, images: int, batch: int, report: Report
    ) -> None:
        self.pipe, self.method, self.images, self.batch = pipe, full, images, batch
        self.report = report
        self.size, self.std = pipe.stack.spec.image_size, pipe.stack.spec.sigma_data
        self.clock = clock(pipe.stack, pipe.sampling, self.size, batch)
        self.reference: list[Tensor] = []
        self.full = self.point(full, 0.0, "full", None)

    def each(self, stage: str, what: Iterable[Any]) -> Iterable[Any]:
        """Reports how far a stage is."""
        items = list(what)
        for number, item in enumerate(items):
            self.report(stage, number, len(items))
            yield item
        self.report(stage, len(items), len(items))

    def parts(self) -> Iterable[tuple[list[int | None], list[int]]]:
        """Labels, every class in turn, and seeds of each batch."""
        classes = self.pipe.stack.spec.classes
        for start in range(0, self.images, self.batch):
            numbers = range(start, min(start + self.batch, self.images))
            labels = [number % classes if classes else None for number in numbers]
            yield labels, [FIRST_SEED + number for number in numbers]

    def losses(self) -> Losses:
        """Draws the reference, and measures every choice at every noise level on its way."""
        totals: Losses = {}
        for labels, seeds in self.each("measuring", list(self.parts())):
            denoise = self.measuring(totals)
            drawn = self.pipe.draw(denoise, labels, seeds, self.method, self.size)
            self.reference.append(finite(drawn))
        return totals

    def measuring(self, totals: Losses) -> Denoise:
        """The full method's denoiser, which adds to ``totals`` when it first comes to a level."""
        stack, full = self.pipe.stack, self.method
        everything = full.denoiser(stack, self.pipe.stack.spec.classes)
        seen = set()

        def denoise(noisy: Tensor, sigma: Tensor, labels: Tensor | None) -> Tensor:
            best, level = everything(noisy, sigma, labels), float(sigma[0])
            if level in seen:
                return best
            seen.add(level)
            shared = _Shared(stack)
            for choice in _choices(stack, full, level):
                estimate = _only(full, choice).denoiser(shared, stack.spec.classes)
                change = (estimate(noisy, sigma, labels) - best).double() / self.std
                mean = change.square().mean().item() * len(noisy) / self.images
                totals.setdefault(level, {}).setdefault(choice, 0.0)
                totals[level][choice] += mean
            return best

        return denoise

    def judge(self, method: Method, kind: str, predicted: float | None = None) -> Point:
        """Draws the same seeds by another method, and measures how far they are."""
        denoise = method.denoiser(self.pipe.stack, self.pipe.stack.spec.classes)
        total = 0.0
        for (labels, seeds), reference in zip(self.parts(), self.reference, strict=True):
            drawn = self.pipe.draw(denoise, labels, seeds, method, self.size)
            change = (drawn - reference).double() / self.std
            total += change.square().mean().item() * len(seeds) / self.images
        return self.point(method, sqrt(total), kind, predicted)

    def point(self, method: Method, error: float, kind: str, predicted: float | None) -> Point:
        pipe = self.pipe
        flops = method.flops(pipe.sampling, pipe.stack.spec, self.size)
        return Point(method, flops, error, predicted, round(self.clock(method), 3), kind)


class _Shared:
    """A stack whose estimates serve twice: those of some bricks are the first of more bricks."""

    def __init__(self, stack: LegoStack) -> None:
        self.stack = stack
        self.cache: dict[tuple[int, tuple[int, ...]], list[Tensor]] = {}

    def estimates(
        self, noisy: Tensor, sigma: Tensor, labels: Tensor | None, bricks: Sequence[int]
    ) -> list[Tensor]:
        more = tuple(sorted({*bricks, len(self.stack.bricks) - 1}))
        key = (len(noisy), more)
        if key not in self.cache:
            self.cache[key] = self.stack.estimates(noisy, sigma, labels, more)
        return self.cache[key][: len(bricks)]

    def __call__(
        self, noisy: Tensor, sigma: Tensor, labels: Tensor | None, bricks: Sequence[int]
    ) -> Tensor:
        return self.estimates(noisy, sigma, labels, bricks)[-1]


def _choices(stack: LegoStack, full: Method, sigma: float) -> list[Choice]:
    """What may run at a noise level: any bricks, without guidance or, where there is, with it."""
    guided = [False, True] if full.evaluations(sigma) > 1 else [False]
    numbers = range(len(stack.bricks))
    subsets = [s for size in range(1, len(numbers) + 1) for s in combinations(numbers, size)]
    return [Choice(bricks, guide) for guide in guided for bricks in subsets]


def _only(full: Method, choice: Choice) -> Method:
    """The method that makes a choice at every noise level."""
    method = replace(full, plan=SkipPlan(((0.0, choice.bricks),)))
    if full.guidance == 1 or choice.guided:
        return method
    return replace(method, guidance=1.0, self_guidance=1.0)


def _grids(steps: int) -> list[int]:
    """Fewer steps to try, from 2 on."""
    if steps - 2 <= GRIDS:
        return list(range(2, steps))
    ratio = (steps / 2) ** (1 / GRIDS)
    return sorted({round(2 * ratio**number) for number in range(GRIDS)})


def _other_solver(full: Method, pipe: LegoPipeline) -> list[Method]:
    """The full method by another solver of the same equation, for no more than its evaluations.

    None for a method that draws fresh noise: its images are its own.
    """
    if full.sampler == SOLVER or not full.deterministic:
        return []
    calls = len(full.levels(pipe.sampling))
    return [
        replace(full, sampler=SOLVER, options={}, steps=steps) for steps in (*_grids(calls), calls)
    ]


def _table(pipe: LegoPipeline, method: Method, losses: Losses) -> dict[float, Step]:
    """What each choice costs and errs at each noise level of a method, falling."""
    spec, sampling = pipe.stack.spec, pipe.sampling
    sigmas = sampling.sigmas(method.steps, method.sampler)
    reach = influences(method.sampler, sigmas, spec.sigma_data, method.options)
    table = {}
    for level, calls in Counter(method.levels(sampling)).items():
        costs, errors = {}, {}
        for choice in _choices(pipe.stack, method, level):
            flops = subset_flops(spec, choice.bricks, spec.image_size)
            costs[choice] = float(calls * flops * (2 if choice.guided else 1))
            errors[choice] = reach[level] ** 2 * _between(losses, level, choice)
        table[level] = Step(costs, errors)
    return table


def _between(losses: Losses, level: float, choice: Choice) -> float:
    """The loss at a noise level, from those at measured ones: a line between their logarithms."""
    known = sorted(at for at in losses if choice in losses[at])
    level = min(max(level, known[0]), known[-1])
    for low, high in pairwise(known):
        if low <= level <= high:
            low_loss, high_loss = (max(losses[at][choice], 1e-30) for at in (low, high))
            part = log(level / low) / log(high / low)
            return exp((1 - part) * log(low_loss) + part * log(high_loss))
    return losses[level][choice]


def _method(found: Found, method: Method, pipe: LegoPipeline) -> Method:
    """The method that makes the choices of a plan."""
    levels = list(dict.fromkeys(method.levels(pipe.sampling)))
    chosen = dict(zip(levels, found.choices, strict=True))
    plan = SkipPlan.at_levels({level: choice.bricks for level, choice in chosen.items()})
    if method.guidance == 1 or all(
        choice.guided for level, choice in chosen.items() if method.evaluations(level) > 1
    ):
        return replace(method, plan=plan)
    inside = [level for level, choice in chosen.items() if choice.guided]
    if not inside:
        return replace(method, plan=plan, guidance=1.0, self_guidance=1.0)
    below = [level for level in levels if level < min(inside)]
    above = [level for level in levels if level > max(inside)]
    interval = (
        max(method.interval[0], sqrt(max(below) * min(inside)) if below else 0.0),
        min(method.interval[1], sqrt(min(above) * max(inside)) if above else inf),
    )
    return replace(method, plan=plan, interval=interval)


def _spread(
    found: Sequence[tuple[Found, Method]], full: float, count: int
) -> list[tuple[Found, Method]]:
    """The best plans within 1/count, 2/count ... of the full cost, of the best grids.

    Which solver with how many steps is best is what the table tells least exactly, so several are
    tried.
    """
    chosen: dict[int, None] = {}
    for number in range(1, count + 1):
        most = full * number / count
        best: dict[tuple[str, int], int] = {}  # solver and steps -> number of the plan
        for n, (one, method) in enumerate(found):
            grid = method.sampler, method.steps
            if one.cost <= most and (grid not in best or one.error < found[best[grid]][0].error):
                best[grid] = n
        chosen |= dict.fromkeys(sorted(best.values(), key=lambda n: found[n][0].error)[:TRIED])
    return [found[number] for number in chosen]


def _paper(pipe: LegoPipeline, full: Method) -> list[SkipPlan]:
    """The paper's break points."""
    if len(pipe.stack.bricks) < 2:
        return []
    fractions = [number / PAPER for number in range(1, PAPER + 1)]
    plans = [pipe.paper_plan(fraction, full.steps, full.sampler) for fraction in fractions]
    return list(dict.fromkeys(plans))


def _best(points: Iterable[Point]) -> tuple[Point, ...]:
    """The points that no other point beats in both cost and error, by rising cost."""
    best: list[Point] = []
    for point in sorted(points, key=lambda point: (point.flops, point.error)):
        if point.error < (best[-1].error if best else WORST):
            best.append(point)
    return tuple(best)


def _machine(device: torch.device) -> str:
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    return f"{platform.machine()} {device.type}, {torch.get_num_threads()} threads"
