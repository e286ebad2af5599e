import pytest
import torch
from conftest import noisy_batch

from legodiff.diffusion.guidance import guided


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
