import pytest
import torch
from small_runs import CODEC, Bars, config
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from legodiff import preset
from legodiff.model.cost import subset_flops
from legodiff.train.distributed import World
from legodiff.train.estimate import estimate, training_flops
from legodiff.train.learner import build_learner, build_network


def test_what_is_counted_is_what_a_step_does():
    """FLOPs of a real step, counted while it runs, with attention as plain products."""
    settings = config("train.patch_ratio=0.5")
    spec = settings.model.spec(1, 2)
    learner = build_learner(build_network(spec, 0), CODEC, settings.train, World())
    images = torch.from_numpy(Bars().read(0)[0]).expand(4, 1, 16, 16)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        losses = learner.objective(images, torch.zeros(4, dtype=torch.int64), range(4), (0, 1, 2))
        losses.values.mean().backward()
    counted = counter.get_total_flops() / 4
    assert training_flops(spec, settings.train) == pytest.approx(counted, rel=0.1)


def test_fewer_patches_cost_less():
    spec = preset("tiny-pr-16", channels=1)
    whole, half = (
        training_flops(spec, config(f"train.patch_ratio={ratio}").train) for ratio in (1, 0.5)
    )
    assert half < 0.75 * whole
    assert 2.5 < whole / subset_flops(spec, (0, 1, 2), (16, 16)) < 3.1


def test_an_estimate_tells_what_a_run_would_take():
    found = estimate(config("train.micro_batch=4"), Bars(), CODEC, World())
    counted = sum(p.numel() for p in build_network(found.spec, 0).parameters())
    assert found.parameters == found.learning == counted
    assert found.plan == "batch 16 = 1 process x 4 images x 4 passes"
    assert found.forward_flops == subset_flops(found.spec, (0, 1, 2), (16, 16))
    assert found.memory > 10**7
    assert found.hours == pytest.approx(96 / found.images_per_second / 3600)
    upper = estimate(config("train.bricks=[1]"), Bars(), CODEC, World())
    assert upper.learning < upper.parameters < found.parameters
