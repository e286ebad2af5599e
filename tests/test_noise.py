import math

import numpy as np
import pytest
import torch

from legodiff import noise


def test_karras_grid_is_equation_5():
    steps, low, high, rho = 18, 0.002, 80.0, 7.0
    sigmas = noise.karras_sigmas(steps)
    assert sigmas.dtype == torch.float64
    for i in range(steps):
        inner = high ** (1 / rho) + i / (steps - 1) * (low ** (1 / rho) - high ** (1 / rho))
        assert sigmas[i].item() == pytest.approx(inner**rho, rel=1e-12)
    assert sigmas[-1] == 0
    assert len(sigmas) == steps + 1


def test_one_step_starts_at_the_top():
    assert noise.karras_sigmas(1).tolist() == pytest.approx([80, 0])


@pytest.mark.parametrize(
    "arguments", [{"steps": 0}, {"steps": 5, "sigma_min": 0}, {"steps": 5, "sigma_max": 1e-9}]
)
def test_karras_grid_refuses(arguments):
    with pytest.raises(ValueError, match=r"^[^\n]+$"):
        noise.karras_sigmas(**arguments)


def test_lognormal_has_its_moments():
    normal = torch.randn(200_000, generator=torch.Generator().manual_seed(0))
    logs = noise.lognormal_sigmas(normal, -0.8, 1.3).log()
    assert logs.mean().item() == pytest.approx(-0.8, abs=0.01)
    assert logs.std().item() == pytest.approx(1.3, abs=0.01)


def test_ddpm_table_by_hand():
    sigmas = noise.ddpm_sigmas()
    beta0, beta1 = 1e-4, 1e-4 + (0.02 - 1e-4) / 999
    abar0, abar1 = 1 - beta0, (1 - beta0) * (1 - beta1)
    assert sigmas[0].item() == pytest.approx(((1 - abar0) / abar0) ** 0.5, rel=1e-12)
    assert sigmas[1].item() == pytest.approx(((1 - abar1) / abar1) ** 0.5, rel=1e-12)
    assert sigmas[-1].item() == pytest.approx(157.4, abs=0.1)  # as EDM reports for DDPM
    assert (sigmas.diff() > 0).all()


def cosine(t):
    return math.cos((t / 300 + 0.008) / 1.008 * math.pi / 2) ** 2


BETAS = {
    "linear": [1e-4 + (0.02 - 1e-4) * t / 299 for t in range(300)],
    "scaled_linear": [(1e-2 + (0.02**0.5 - 1e-2) * t / 299) ** 2 for t in range(300)],
    "squaredcos_cap_v2": [min(1 - cosine(t + 1) / cosine(t), 0.999) for t in range(300)],
}


@pytest.mark.parametrize("kind", BETAS)
def test_tables_are_products_of_the_betas_of_their_papers(kind):
    abar, table = 1.0, noise.beta_sigmas(kind, steps=300).tolist()
    for beta, sigma in zip(BETAS[kind], table, strict=True):
        abar *= 1 - beta
        assert sigma == pytest.approx(((1 - abar) / abar) ** 0.5, rel=1e-9)


def test_timesteps_are_those_of_a_search():
    table = noise.ddpm_sigmas()
    sigma = torch.logspace(-3, 3, 101)
    found = noise.table_timestep(sigma)
    known = table.log().numpy()
    expected = np.interp(sigma.double().log().numpy(), known, np.arange(1000))
    assert np.allclose(found.numpy(), expected, atol=1e-6)
    single = noise.table_timestep(table.float())
    assert torch.allclose(single, torch.arange(1000).double(), atol=1e-4)


def test_ddpm_draws_reach_the_whole_table_evenly():
    table = noise.ddpm_sigmas().float()
    drawn = noise.ddpm_table_sigmas(
        torch.randn(100_000, generator=torch.Generator().manual_seed(0))
    )
    timestep = torch.searchsorted(table, drawn)
    assert torch.equal(table[timestep], drawn)
    assert timestep.min() == 0
    assert timestep.max() == 999
    assert timestep.double().mean().item() == pytest.approx(499.5, abs=3)
