"""Drawing gives a GPU its work ahead: inside a step nobody waits for what it is at.

The meta device stands for the GPU. There is nothing to read on it, so whoever asks for a number is
refused; copies to it that wait are counted, and there must be no more of them in more steps.
"""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from legodiff import LegoStack, SkipPlan, preset
from legodiff.diffusion.canvas import Windows, windowed
from legodiff.diffusion.regions import across
from legodiff.drawing import draw
from legodiff.sampling import Method, Sampling

META = torch.device("meta")


class Waits(TorchDispatchMode):
    """Counts what waits: copies to the device that are not told not to, indices from the CPU."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out, words = func(*args, **(kwargs or {})), kwargs or {}
        name = str(func)
        if name.startswith("aten._to_copy") and args[0].device != out.device:
            self.count += not words.get("non_blocking")
        if name.startswith("aten.copy_") and args[0].device != args[1].device:
            self.count += not (words.get("non_blocking") or (len(args) > 2 and args[2]))
        if name.startswith("aten.index.Tensor") and args[0].device == META:
            self.count += any(index is not None and index.device != META for index in args[1])
        return out


def waits(steps, sampler, objective, windows=None, labels=(), **options):
    spec = preset("tiny-pr-16", channels=1, classes=3, objective=objective)
    with META:
        stack = LegoStack(spec)
    plan = SkipPlan(((0.0, (0, 1, 2)), (1.0, (0,))))
    method = Method(plan, steps, sampler, options, guidance=1.5)
    denoise, size = method.denoiser(stack, 3), (16, 16)
    if windows:
        size = windows.drawn((16, 40))
        regions = across(labels, (16, 40), 2) if labels else None
        denoise = windowed(denoise, windows, method.levels(Sampling()), regions)
    with Waits() as seen:
        drawn = draw(denoise, spec, Sampling(), method, [0, None], [0, 1], size, META)
    assert (drawn.device, drawn.shape) == (META, (2, 1, *size))
    return seen.count


CHURN = {"churn": 10.0}


@pytest.mark.parametrize("objective", ["edm", "ddpm"])
@pytest.mark.parametrize(
    ("sampler", "options"),
    [("heun", {}), ("heun", CHURN), ("dpmpp_2m", {}), ("ddpm", {}), ("ddim", {"eta": 0.5})],
)
def test_no_step_waits(objective, sampler, options):
    assert waits(3, sampler, objective, **options) == waits(9, sampler, objective, **options)


@pytest.mark.parametrize("windows", [Windows((16, 16)), Windows((16, 16), stride=8)])
@pytest.mark.parametrize("labels", [(), (0, 1)])
def test_no_step_of_a_canvas_waits(windows, labels):
    few, many = (waits(steps, "euler", "edm", windows, labels) for steps in (3, 9))
    assert few == many
