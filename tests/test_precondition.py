import pytest
import torch

from legodiff.model.precondition import (
    OBJECTIVES,
    ddpm,
    edm,
    linear_estimate,
    to_clean,
    to_raw,
)
from legodiff.noise import ddpm_sigmas

SIGMA = torch.tensor([0.01, 0.5, 3.0, 60.0])


def test_edm_is_table_1():
    data = 0.7
    at = edm(SIGMA, data)
    for i, s in enumerate(SIGMA.tolist()):
        assert at.skip[i].item() == pytest.approx(data**2 / (s**2 + data**2))
        assert at.out[i].item() == pytest.approx(s * data / (s**2 + data**2) ** 0.5)
        assert at.scale[i].item() == pytest.approx(1 / (s**2 + data**2) ** 0.5)
        assert at.noise[i].item() == pytest.approx(torch.tensor(s).log().item() / 4)


def test_edm_keeps_input_and_target_at_unit_variance():
    data = 0.5
    generator = torch.Generator().manual_seed(0)
    clean = data * torch.randn(4, 1, 300, 300, generator=generator)
    noisy = clean + SIGMA.view(-1, 1, 1, 1) * torch.randn(clean.shape, generator=generator)
    at = edm(SIGMA, data)
    for value in (at.scale * noisy, to_raw(clean, noisy, at)):
        assert torch.allclose(value.std(dim=(1, 2, 3)), torch.ones(4), atol=0.02)


def test_ddpm_is_equation_6_in_sigma_coordinates():
    """x_t = sqrt(a) x0 + sqrt(1-a) eps, and x0 = x_t / sqrt(a) - sqrt((1-a)/a) eps."""
    timestep = torch.tensor([0, 10, 500, 999])
    sigma = ddpm_sigmas()[timestep]
    abar = (1 / (1 + sigma**2)).view(-1, 1, 1, 1)
    x_t, eps = torch.randn(4, 3, 4, 4).double(), torch.randn(4, 3, 4, 4).double()
    expected = x_t / abar.sqrt() - ((1 - abar) / abar).sqrt() * eps
    noisy = x_t / abar.sqrt()  # the variance-exploding form
    at = ddpm(sigma, 1.0)
    assert torch.allclose(to_clean(eps, noisy, at), expected)
    assert torch.allclose(at.scale * noisy, x_t)
    assert torch.allclose(at.noise, timestep.double(), atol=1e-9)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_raw_and_clean_are_inverse(objective):
    at = OBJECTIVES[objective](SIGMA.double(), 0.5)
    noisy, raw = torch.randn(2, 4, 1, 4, 4, dtype=torch.float64)
    assert torch.allclose(to_raw(to_clean(raw, noisy, at), noisy, at), raw)


def test_linear_estimate_has_the_least_error_of_all_linear_ones():
    generator = torch.Generator().manual_seed(0)
    clean = 0.5 * torch.randn(4, 1, 200, 200, generator=generator)
    noisy = clean + SIGMA.view(-1, 1, 1, 1) * torch.randn(clean.shape, generator=generator)
    best = linear_estimate(noisy, SIGMA, 0.5)
    slope = (noisy * clean).sum(dim=(1, 2, 3)) / (noisy**2).sum(dim=(1, 2, 3))  # least squares
    assert torch.allclose(best, slope.view(-1, 1, 1, 1) * noisy, atol=0.03)
