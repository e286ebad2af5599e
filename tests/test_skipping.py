import json
import weakref
from collections import Counter

import pytest
import torch
from conftest import noisy_batch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from legodiff import SkipPlan
from legodiff.diffusion.guidance import guided
from legodiff.diffusion.samplers import heun
from legodiff.diffusion.skipping import skipping
from legodiff.noise import karras_sigmas

SIGMAS = karras_sigmas(18)


def skipped(plan, count=3):
    """For each step of the grid: is the top brick left out?"""
    return [count - 1 not in plan.bricks(float(sigma)) for sigma in SIGMAS[:-1]]


@pytest.mark.parametrize(("fraction", "steps"), [(0, 0), (0.5, 9), (1, 18), (0.25, 5), (1 / 3, 6)])
def test_the_papers_rules_skip_that_share_of_the_steps(fraction, steps):
    growth = SkipPlan.skip_low_noise(3, fraction, SIGMAS)
    refinement = SkipPlan.skip_high_noise(3, fraction, SIGMAS)
    assert skipped(growth) == [False] * (18 - steps) + [True] * steps
    assert skipped(refinement) == [True] * steps + [False] * (18 - steps)
    for plan in (growth, refinement):
        assert all(plan.bricks(float(s))[:2] == (0, 1) for s in SIGMAS[:-1])


def test_nothing_skipped_is_the_full_plan():
    assert SkipPlan.skip_low_noise(3, 0, SIGMAS) == SkipPlan.full(3)
    assert SkipPlan.skip_high_noise(3, 0, SIGMAS) == SkipPlan.full(3)
    assert SkipPlan.full(3).bricks(1e-9) == SkipPlan.full(3).bricks(1e9) == (0, 1, 2)


def test_float32_noise_levels_fall_on_the_same_side():
    for plan in (SkipPlan.skip_low_noise(2, 0.5, SIGMAS), SkipPlan.skip_high_noise(2, 0.5, SIGMAS)):
        for sigma in SIGMAS[:-1]:
            assert plan.bricks(float(sigma.float())) == plan.bricks(float(sigma))


def test_a_plan_of_levels_changes_halfway_between_them():
    """In logarithms, as the levels of a sampler lie."""
    made = SkipPlan.at_levels({4.0: (0, 1), 1.0: (0,), 9.0: (0, 1)})
    assert made == SkipPlan(((0.0, (0,)), (2.0, (0, 1))))
    assert SkipPlan.at_levels({3.0: (1,)}) == SkipPlan(((0.0, (1,)),))


@given(st.lists(st.floats(1e-3, 1e3), unique=True, max_size=5), st.floats(1e-4, 1e4))
def test_a_plan_is_a_step_function_of_noise(breaks, sigma):
    lows = [0.0, *sorted(breaks)]
    plan = SkipPlan(tuple((low, (number,)) for number, low in enumerate(lows)))
    assert plan.bricks(sigma) == (sum(low <= sigma for low in lows) - 1,)
    assert SkipPlan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan


@pytest.mark.parametrize(
    "bands",
    [
        (),
        ((1.0, (0,)),),
        ((0.0, ()),),
        ((0.0, (0,)), (0.0, (1,))),
        ((0.0, (0,)), (2, (1,)), (1, (0,))),
    ],
)
def test_bands_that_are_no_plan_are_refused(bands):
    with pytest.raises(ValueError, match=r"^skip plan[^\n]*rising[^\n]*$"):
        SkipPlan(bands)


def test_other_mistakes_are_refused():
    with pytest.raises(ValueError, match="from 0 to 1"):
        SkipPlan.skip_low_noise(3, 1.2, SIGMAS)
    with pytest.raises(ValueError, match="one brick has none to skip"):
        SkipPlan.skip_low_noise(1, 0.5, SIGMAS)
    with pytest.raises(ValueError, match="expected the key bands"):
        SkipPlan.from_dict({"band": []})


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_a_skipped_brick_is_not_executed_also_under_guidance(stack, scale):
    run = [0, 0, 0]
    for number, brick in enumerate(stack.bricks):

        def count(*_, number=number):
            run[number] += 1

        brick.register_forward_hook(count)
    plan = SkipPlan.skip_high_noise(3, 0.5, SIGMAS)
    noise = torch.randn(2, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    denoise = guided(skipping(stack, plan), scale, 10)
    with torch.no_grad():
        heun(denoise, noise, SIGMAS, torch.tensor([3, 4]))
    calls = 2 * 18 - 1
    high = 1 + 2 * 8  # evaluations at the first 9 noise levels: one at the first, two at the others
    assert run == [calls, calls, calls - high]


def test_a_skipped_brick_costs_no_flops_also_under_guidance(stack):
    noise, sigma = torch.randn(1, 1, 16, 16), torch.tensor([5.0])

    def flops(denoise, rows):
        label = torch.zeros(rows, dtype=torch.int64)
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as count:
            denoise(noise.repeat(rows, 1, 1, 1), sigma.repeat(rows), label)
        return count.get_total_flops()

    plan = SkipPlan(((0.0, (0, 1, 2)), (1.0, (0, 1))))
    without_top = flops(lambda *batch: stack(*batch, bricks=(0, 1)), 2)
    assert flops(guided(skipping(stack, plan), 2.0, 10), 1) == without_top
    assert flops(guided(stack, 2.0, 10), 1) > 1.2 * without_top


def test_the_estimate_is_that_of_the_bricks_that_run(stack):
    noisy, sigma, labels = noisy_batch()
    plan = SkipPlan(((0.0, (0, 1, 2)), (0.5, (0,)), (5.0, (0, 2))))
    denoise = skipping(stack, plan)
    for row, bricks in enumerate([(0, 1, 2), (0,), (0, 2)]):  # sigma 0.1, 1, 10
        one = slice(row, row + 1)
        expected = stack(noisy[one], sigma[one], labels[one], bricks=bricks)
        assert torch.equal(denoise(noisy[one], sigma[one], labels[one]), expected)
    with pytest.raises(ValueError, match="different bands"):
        denoise(noisy, sigma, labels)


def test_a_plan_leaves_no_trace(stack):
    noisy, sigma, labels = noisy_batch()
    one = slice(0, 1)
    before = stack(noisy[one], sigma[one], labels[one])
    skipping(stack, SkipPlan(((0.0, (1,)),)))(noisy[one], sigma[one], labels[one])
    assert torch.equal(stack(noisy[one], sigma[one], labels[one]), before)


class LiveBytes(TorchDispatchMode):
    """The most bytes of tensors that were alive at a time, of those made inside."""

    def __init__(self):
        super().__init__()
        self.alive, self.peak = Counter(), 0
        self.sizes = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                self.sizes[storage.data_ptr()] = storage.nbytes()
                self.alive[storage.data_ptr()] += 1
                weakref.finalize(tensor, self.alive.subtract, [storage.data_ptr()])
        now = sum(self.sizes[at] for at, count in self.alive.items() if count > 0)
        self.peak = max(self.peak, now)
        return made


def test_skipping_needs_no_extra_memory(stack):
    noise, labels = torch.randn(2, 1, 16, 16), torch.tensor([1, 2])
    parameters = sum(p.nbytes for p in stack.parameters())

    def peak(plan, scale):
        with torch.no_grad(), LiveBytes() as live:
            heun(guided(skipping(stack, plan), scale, 10), noise, karras_sigmas(3), labels)
        return live.peak

    full = peak(SkipPlan.full(3), 1.0)
    assert noise.nbytes < full < parameters  # nothing as large as the weights is ever copied
    for plan in (
        SkipPlan.skip_low_noise(3, 0.5, karras_sigmas(3)),
        SkipPlan.skip_high_noise(3, 0.5, karras_sigmas(3)),
        SkipPlan(((0.0, (2,)), (1.0, (0,)))),
    ):
        for scale in (1.0, 1.5):
            assert peak(plan, scale) <= peak(SkipPlan.full(3), scale)
