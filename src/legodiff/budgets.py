"""Budgets: what is left of a method within a share of its FLOPs, or within a time."""

from collections.abc import Callable
from dataclasses import replace

from torch import Tensor

from legodiff.diffusion.canvas import Windows, looks
from legodiff.diffusion.regions import Regions
from legodiff.diffusion.skipping import SkipPlan
from legodiff.model.compiled import CompiledStack
from legodiff.model.cost import subset_seconds
from legodiff.model.spec import StackSpec
from legodiff.model.stack import LegoStack
from legodiff.plans import Curve, check_share, parse_milliseconds
from legodiff.sampling import Method, Sampling, one_or_more


def by_plan_or_budget(
    full: Method,
    budget: float | str | None,
    plan: SkipPlan | None,
    curve_of: Callable[[Method], Curve | None],
    stack: LegoStack | CompiledStack,
    sampling: Sampling,
    batch: int,
) -> Method:
    """``full`` itself, or what a plan or a budget leaves of it; ``curve_of`` finds its trade-off.

    Raises ValueError for both at once, and for a plan of another stack.
    """
    if budget is not None and plan is not None:
        raise ValueError("give a budget or a plan, not both")
    if plan is not None:
        count = len(stack.spec.bricks)
        if any(max(bricks) >= count for _, bricks in plan.bands):
            raise ValueError(f"the plan names a brick that this stack of {count} has not")
        return replace(full, plan=plan)
    if budget is None:
        return full
    return by_budget(full, budget, curve_of(full), stack, sampling, batch)


def by_budget(
    full: Method,
    budget: float | str,
    curve: Curve | None,
    stack: LegoStack | CompiledStack,
    sampling: Sampling,
    batch: int,
) -> Method:
    """The best way to draw within a share of the FLOPs of ``full``, or a time such as "50ms".

    That is a point of the trade-off ``curve`` if there is one; else the paper's rule. Raises
    ValueError, naming the cheapest, if nothing is cheap enough.
    """
    size = stack.spec.image_size
    if isinstance(budget, str):
        milliseconds = parse_milliseconds(budget)
        if curve is None:
            raise ValueError(
                f"budget {budget}: a time needs plans for this sampler, steps and guidance; "
                "run legodiff plan first"
            )
        return curve.within_milliseconds(milliseconds, clock(stack, sampling, size, batch)).method
    if curve is None:
        return paper_within(full, budget, sampling, stack.spec, size)
    return curve.within(budget).method


def paper_plan(spec: StackSpec, sigmas: Tensor, fraction: float) -> SkipPlan:
    """The paper's rule: leave out the top brick in a fraction of the steps of a grid.

    The last steps (low noise) if that brick covers the whole image, as in progressive growth; the
    first ones (high noise) if it is a patch-brick, as in progressive refinement.
    """
    top_is_image = spec.bricks[-1].is_image
    rule = SkipPlan.skip_low_noise if top_is_image else SkipPlan.skip_high_noise
    return rule(len(spec.bricks), fraction, sigmas)


def paper_within(
    full: Method, budget: float, sampling: Sampling, spec: StackSpec, size: tuple[int, int]
) -> Method:
    """The paper's rule with the least skipping that keeps to a share of the FLOPs of a method.

    Raises ValueError, naming the cheapest plan, if none does.
    """
    check_share(budget)
    sigmas = sampling.sigmas(full.steps, full.sampler)
    most = full.flops(sampling, spec, size)
    share = 1.0
    for skipped in range(full.steps + 1 if len(spec.bricks) > 1 else 1):
        method = full
        if skipped:
            method = replace(full, plan=paper_plan(spec, sigmas, skipped / full.steps))
        share = method.flops(sampling, spec, size) / most
        if share <= budget:
            return method
    raise ValueError(
        f"budget {budget} is too small: the cheapest plan takes {share:.3f} by the paper's rule; "
        "legodiff plan finds cheaper ones"
    )


def cost(
    method: Method,
    sampling: Sampling,
    spec: StackSpec,
    canvas: tuple[int, int],
    windows: Windows | None = None,
    regions: Regions | None = None,
) -> tuple[int, int]:
    """Evaluations and FLOPs of a canvas by a method, counted beforehand; see ``looks``."""
    count, size = 1, canvas
    if windows is not None:
        count, size = looks(windows, canvas, regions), windows.size
    evaluations = sum(method.evaluations(level) for level in method.levels(sampling))
    return count * evaluations, count * method.flops(sampling, spec, size)


def clock(
    stack: LegoStack | CompiledStack, sampling: Sampling, size: tuple[int, int], batch: int
) -> Callable[[Method], float]:
    """Tells the milliseconds of an image by a method, from the time each subset takes now."""
    batch = one_or_more("batch", batch)
    seconds: dict[tuple[int, ...], float] = {}

    def milliseconds(method: Method) -> float:
        total = 0.0
        for level in method.levels(sampling):
            bricks = method.plan.bricks(level)
            if bricks not in seconds:
                seconds[bricks] = subset_seconds(stack, bricks, size, batch)
            total += 1e3 * method.evaluations(level) * seconds[bricks]
        return total

    return milliseconds
