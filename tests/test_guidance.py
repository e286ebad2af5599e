import pytest
import torch
from conftest import noisy_batch

from legodiff import SkipPlan
from legodiff.diffusion.guidance import guided, self_guided
from legodiff.diffusion.skipping import skipping


def test_it_extrapolates_on_all_channels(stack):
    noisy, sigma, labels = noisy_batch()
    with_class, without = stack(noisy, sigma, labels), stack(noisy, sigma)
    for scale in (0.0, 0.5, 1.5, 4.0):
        expected = without + scale * (with_class - without)
        assert torch.allclose(guided(stack, scale, 10)(noisy, sigma, labels), expected, atol=1e-5)


def test_every_channel_is_guided():
    def denoise(noisy, sigma, labels):
        return labels.view(-1, 1, 1, 1) * torch.ones_like(noisy)

    out = guided(denoise, 3.0, 0)(torch.zeros(2, 4, 2, 2), torch.ones(2), torch.tensor([1, 2]))
    assert out[0].unique().tolist() == [3.0]
    assert out[1].unique().tolist() == [6.0]


def test_scale_1_is_the_denoiser_and_others_take_one_call_of_twice_the_images():
    sizes = []

    def denoise(noisy, sigma, labels):
        sizes.append((len(noisy), len(sigma), labels.tolist()))
        return noisy

    assert guided(denoise, 1.0, 10) is denoise
    guided(denoise, 2.0, 10)(torch.zeros(3, 1, 4, 4), torch.ones(3), torch.arange(3))
    assert sizes == [(6, 6, [0, 1, 2, 10, 10, 10])]


def test_there_must_be_labels():
    with pytest.raises(ValueError, match="needs labels"):
        guided(lambda *_: None, 2.0, 10)(torch.zeros(1, 1, 4, 4), torch.ones(1), None)


def test_outside_the_interval_it_is_the_denoiser_at_its_own_cost(stack):
    sizes = []

    def denoise(noisy, sigma, labels):
        sizes.append(len(noisy))
        return stack(noisy, sigma, labels)

    noisy, _, labels = noisy_batch()
    everywhere, between = guided(stack, 2.0, 10), guided(denoise, 2.0, 10, (0.5, 5.0))
    for level, inside in ((0.1, False), (0.5, True), (5.0, True), (5.1, False)):
        sigma = torch.full((3,), level)
        expected = (everywhere if inside else stack)(noisy, sigma, labels)
        assert torch.equal(between(noisy, sigma, labels), expected)
    assert sizes == [3, 6, 6, 3]
    with pytest.raises(ValueError, match="mixes noise levels inside and outside"):
        between(noisy, torch.tensor([0.1, 1.0, 2.0]), labels)


@pytest.mark.parametrize(("bricks", "lower"), [(None, 0), ((0, 1, 2), 1), ((1, 2), 1), ((0, 1), 0)])
def test_self_guidance_extrapolates_from_a_lower_brick_in_one_pass(stack, bricks, lower):
    noisy, sigma, labels = noisy_batch()
    running = list(bricks or (0, 1, 2))
    estimates = stack.estimates(noisy, sigma, labels, bricks)
    weak, top = estimates[running.index(lower)], estimates[-1]
    calls = []
    stack.bricks[running[-1]].register_forward_hook(lambda *_: calls.append(1))
    drawn = self_guided(stack, 1.5, lower)(noisy, sigma, labels, bricks)
    assert torch.allclose(drawn, top + 0.5 * (top - weak), atol=1e-5)
    assert calls == [1]


def test_self_guidance_without_its_brick_or_outside_its_interval_is_the_stack(stack):
    noisy, sigma, labels = noisy_batch()
    assert self_guided(stack, 1.0) is stack
    for bricks in ((1, 2), (0,)):
        plain = stack(noisy, sigma, labels, bricks)
        assert torch.equal(self_guided(stack, 3.0)(noisy, sigma, labels, bricks), plain)
    outside = self_guided(stack, 3.0, 0, (100.0, 200.0))
    assert torch.equal(outside(noisy, sigma, labels), stack(noisy, sigma, labels))


def test_all_wrappers_go_together(stack):
    noisy, sigma, labels = noisy_batch()
    plan = SkipPlan(((0.0, (0, 1)),))
    denoise = guided(skipping(self_guided(stack, 2.0), plan), 3.0, 10)
    both = [stack.estimates(noisy, sigma, one, (0, 1)) for one in (labels, None)]
    with_class, without = ((2 * top - low) for low, top in both)
    expected = without + 3 * (with_class - without)
    assert torch.allclose(denoise(noisy, sigma, labels), expected, atol=1e-4)
