import pytest
import torch
from conftest import awaken, samples_of
from torch.utils.flop_counter import FlopCounterMode

from legodiff import LegoStack, preset
from legodiff.diffusion.loss import FILLS, brick_losses, drop_labels, fill_image
from legodiff.model.precondition import OBJECTIVES
from legodiff.model.stack import LegoStack as Stack


class Pretender:
    """A model whose estimates are the clean images plus a given error."""

    def __init__(self, stack, clean, errors):
        self.stack, self.clean, self.errors = stack, clean, errors
        self.loss_weight = stack.loss_weight

    def estimates(self, noisy, sigma, labels, bricks, **_):
        self.noisy, self.labels, self.bricks = noisy, labels, bricks
        return [self.clean + error for error in self.errors]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def batch(size=(16, 16)):
    """Clean images, noise and noise levels."""
    clean, noise = torch.randn(2, 3, 1, *size, generator=generator())
    return 0.5 * clean, noise, torch.tensor([0.1, 1.0, 10.0])


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("ratio", [1.0, 0.5])
def test_the_loss_is_the_weighted_mean_over_computed_pixels(objective, ratio):
    clean, noise, sigma = batch()
    stack = LegoStack(preset("tiny-pr-16", channels=1, objective=objective))
    errors = torch.randn(3, *clean.shape, generator=generator(1))
    samples = samples_of(stack.spec, ratio)
    losses = brick_losses(
        Pretender(stack, clean, errors), clean, noise, sigma, samples=samples if ratio < 1 else None
    )
    weight = OBJECTIVES[objective](sigma, 0.5).out.view(-1) ** -2
    for loss, error, sample in zip(losses, errors, samples, strict=True):
        mask = torch.ones_like(error, dtype=torch.bool) if sample is None else sample.mask
        for row in range(3):
            expected = weight[row] * error[row][mask[row]].square().mean()
            assert loss[row].item() == pytest.approx(expected.item(), rel=1e-5)


def test_noise_is_scaled_by_sigma():
    clean, noise, sigma = batch()
    model = Pretender(LegoStack(preset("tiny-pr-16", channels=1)), clean, [0])
    brick_losses(model, clean, noise, sigma)
    for row in range(3):
        assert torch.allclose(model.noisy[row], clean[row] + sigma[row] * noise[row])


def test_only_the_bricks_asked_for_have_a_loss():
    torch.manual_seed(0)
    stack = awaken(Stack(preset("tiny-pr-16", channels=1)))
    clean, noise, sigma = batch()
    samples = samples_of(stack.spec)
    both = brick_losses(stack, clean, noise, sigma, bricks=(2, 0), samples=samples)
    assert both.shape == (2, 3)
    alone = brick_losses(stack, clean, noise, sigma, bricks=(0,), samples=samples)
    assert torch.allclose(both[0], alone[0], rtol=1e-5)
    top = stack.estimates(
        clean + sigma.view(-1, 1, 1, 1) * noise, sigma, bricks=(0, 2), samples=samples
    )[-1]
    mask = samples[2].mask
    error = (stack.loss_weight(sigma) * (top - clean) ** 2).where(mask, 0).sum(dim=(1, 2, 3))
    assert torch.allclose(both[1], error / mask[0].sum(), rtol=1e-5)


def test_edm_loss_is_that_of_the_raw_output():
    """lambda = 1 / c_out² makes it |F - (clean - c_skip noisy) / c_out|² (EDM, equation 8)."""
    torch.manual_seed(0)
    stack = awaken(Stack(preset("tiny-pr-16", channels=1, refine=False)))
    clean, noise, sigma = batch()
    raws = []
    for brick in stack.bricks:
        brick.register_forward_hook(lambda *args: raws.append(args[2]))
    losses = brick_losses(stack, clean, noise, sigma)
    noisy = clean + sigma.view(-1, 1, 1, 1) * noise
    at = OBJECTIVES["edm"](sigma, 0.5)
    target = (clean - at.skip * noisy) / at.out
    for loss, raw in zip(losses, raws, strict=True):
        assert torch.allclose(loss, (raw - target).square().mean(dim=(1, 2, 3)), rtol=1e-3)


def test_a_fresh_network_has_unit_loss_at_every_noise_level():
    clean = 0.5 * torch.randn(6, 1, 64, 64, generator=generator())
    sigma = torch.logspace(-2, 2, 6)
    stack = LegoStack(preset("tiny-pg-16", channels=1))
    losses = brick_losses(stack, clean, torch.randn(clean.shape, generator=generator(1)), sigma)
    assert torch.allclose(losses, torch.ones(3, 6), atol=0.1)


def test_each_fill_is_what_it_says():
    clean, noise, _ = batch()
    seen = {fill: fill_image(fill, clean, noise, 0.3) for fill in FILLS}
    assert seen["skip"] is None
    assert torch.equal(seen["clean"], clean)
    assert torch.equal(seen["zero"], torch.zeros_like(clean))
    assert torch.equal(seen["noise"], 0.3 * noise)
    with pytest.raises(ValueError, match="choose from skip, clean, noise, zero"):
        fill_image("hope", clean, noise, 0.3)


def test_the_clean_fill_leaks_and_no_other_does():
    """With it, the clean image of an unsampled patch changes what the next brick makes of it."""
    torch.manual_seed(0)
    stack = awaken(Stack(preset("tiny-pg-16", channels=1)))
    clean, noise, sigma = batch()
    sample = samples_of(stack.spec, [0.5, 1.0, 1.0])[0]
    noisy = clean + sigma.view(-1, 1, 1, 1) * noise

    def top(fill):
        return stack.estimates(noisy, sigma, samples=[sample, None, None], fill=fill)[-1]

    other = torch.where(sample.mask, clean, clean + 1)
    assert not torch.allclose(top(clean), top(other))
    assert torch.equal(top(torch.where(sample.mask, other, 0)), top(torch.zeros_like(clean)))


def training_flops(name, ratio):
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        stack = LegoStack(preset(name, channels=1))
        clean, sigma = torch.empty(4, 1, 16, 16), torch.empty(4)
        samples = samples_of(stack.spec, ratio, batch=4, device="meta")
        brick_losses(stack, clean, clean, sigma, samples=samples).mean().backward()
    return counter.get_total_flops()


@pytest.mark.parametrize("name", ["tiny-pr-16", "tiny-pg-16"])
def test_unsampled_patches_cost_nothing(name):
    """FLOPs of a training step fall linearly with the share of patches, image-brick aside."""
    costs = {ratio: training_flops(name, ratio) for ratio in (0.25, 0.5, 0.75, 1.0)}
    steps = [costs[1.0] - costs[0.75], costs[0.75] - costs[0.5], costs[0.5] - costs[0.25]]
    assert steps[0] == pytest.approx(steps[1], rel=0.01)
    assert steps[1] == pytest.approx(steps[2], rel=0.01)
    assert costs[0.25] < 0.65 * costs[1.0]


def test_gradients_flow_between_bricks_or_not():
    for detach in (False, True):
        torch.manual_seed(0)
        stack = awaken(Stack(preset("tiny-pr-16", channels=1)))
        clean, noise, sigma = batch()
        brick_losses(stack, clean, noise, sigma, detach=detach)[-1].mean().backward()
        reached = bool(stack.bricks[0].embed.weight.grad.any())
        assert reached != detach


def test_labels_are_dropped_one_by_one():
    labels = torch.arange(10).repeat(10_000)
    uniform = torch.rand(len(labels), generator=generator())
    dropped = drop_labels(labels, 10, 0.1, uniform)
    changed = dropped != labels
    assert (dropped[changed] == 10).all()
    assert changed.float().mean().item() == pytest.approx(0.1, abs=0.005)
    assert torch.equal(drop_labels(labels, 10, 0.0, uniform), labels)
    assert (drop_labels(labels, 10, 1.0, uniform) == 10).all()


def test_gradients_are_the_same_each_time_on_several_threads():
    """Places are shared by the patches of many images; their gradients must add up in order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        torch.manual_seed(0)
        stack = awaken(Stack(preset("lite-pr-16", channels=1)))
        clean, sigma = 0.5 * torch.randn(64, 1, 16, 16), torch.rand(64) + 0.1
        noise, samples = torch.randn_like(clean), samples_of(stack.spec, batch=64)
        seen = []
        for _ in range(4):
            stack.zero_grad()
            losses = brick_losses(stack, clean, noise, sigma, samples=samples)
            losses.mean().backward()
            seen.append([parameter.grad.clone() for parameter in stack.parameters()])
    finally:
        torch.set_num_threads(threads)
    for again in seen[1:]:
        assert all(torch.equal(a, b) for a, b in zip(seen[0], again, strict=True))
