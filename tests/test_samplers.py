import math

import pytest
import torch

from legodiff.diffusion.samplers import heun, heun_levels
from legodiff.noise import karras_sigmas

STD = 0.5


def gaussian(noisy, sigma, labels):
    """The exact denoiser of data N(0, STD²)."""
    return noisy * (STD**2 / (STD**2 + sigma.to(noisy.dtype) ** 2)).view(-1, 1, 1, 1)


def unit_noise(shape=(4, 1, 8, 8), seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def exact(noise, sigma_max):
    """Where the probability flow of a Gaussian ends: noisy * std / sqrt(std² + sigma²)."""
    return noise * sigma_max * STD / math.sqrt(STD**2 + sigma_max**2)


def test_a_gaussian_ends_where_the_closed_form_says():
    noise = unit_noise()
    drawn = heun(gaussian, noise, karras_sigmas(256))
    assert torch.allclose(drawn, exact(noise, 80.0), rtol=1e-3)


def test_the_error_falls_with_the_square_of_the_steps():
    noise = torch.ones(1, 1, 1, 1, dtype=torch.float64)
    errors = [
        abs((heun(gaussian, noise, karras_sigmas(n)) - exact(noise, 80.0)).item())
        for n in (32, 64, 128)
    ]
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.15)
    assert errors[1] / errors[2] == pytest.approx(4, rel=0.15)


@pytest.mark.parametrize("steps", [1, 2, 18])
def test_evaluations_and_their_noise_levels_are_exact(steps):
    seen = []

    def denoise(noisy, sigma, labels):
        assert sigma.dtype == torch.float32
        assert sigma.shape == (4,)
        assert (sigma == sigma[0]).all()
        seen.append(sigma[0].item())
        return gaussian(noisy, sigma, labels)

    sigmas = karras_sigmas(steps)
    heun(denoise, unit_noise(), sigmas)
    assert len(seen) == 2 * steps - 1
    assert seen == pytest.approx(heun_levels(sigmas))


def by_algorithm_2(noise, sigmas, draws, churn, s_min, s_max, s_noise):
    """An independent scalar transcription of the pseudo code, for one pixel."""
    t = [float(s) for s in sigmas]
    n = len(t) - 1
    x = noise * t[0]

    def d(x, s):
        return x * STD**2 / (STD**2 + s**2)

    for i in range(n):
        gamma = min(churn / n, math.sqrt(2) - 1) if s_min <= t[i] <= s_max else 0.0
        t_hat = t[i] + gamma * t[i]
        epsilon = s_noise * draws.pop(0) if gamma > 0 else 0.0
        x_hat = x + math.sqrt(t_hat**2 - t[i] ** 2) * epsilon
        slope = (x_hat - d(x_hat, t_hat)) / t_hat
        x_next = x_hat + (t[i + 1] - t_hat) * slope
        if t[i + 1] != 0:
            slope_next = (x_next - d(x_next, t[i + 1])) / t[i + 1]
            x_next = x_hat + (t[i + 1] - t_hat) * (slope / 2 + slope_next / 2)
        x = x_next
    return x


@pytest.mark.parametrize(
    "settings",
    [
        {"churn": 0.0, "s_min": 0.0, "s_max": math.inf, "s_noise": 1.0},
        {"churn": 10.0, "s_min": 0.05, "s_max": 20.0, "s_noise": 1.003},
        {"churn": 400.0, "s_min": 0.0, "s_max": math.inf, "s_noise": 1.0},  # gamma at its bound
    ],
)
def test_it_is_algorithm_2_step_by_step(settings):
    sigmas, draws = karras_sigmas(12), [0.3, -1.2, 0.7, 2.0, -0.4, 0.1, 1.1, -0.9, 0.2, 0.5, -1, 1]
    mine, theirs = list(draws), list(draws)
    noise = torch.full((1, 1, 1, 1), 0.8, dtype=torch.float64)
    drawn = heun(gaussian, noise, sigmas, draw=lambda: noise / 0.8 * mine.pop(0), **settings)
    expected = by_algorithm_2(0.8, sigmas, theirs, **settings)
    assert drawn.item() == pytest.approx(expected, rel=1e-5)
    assert mine == theirs  # as many draws


def test_churn_keeps_the_distribution():
    noise = unit_noise((1, 1, 200, 200))
    torch.manual_seed(0)
    drawn = heun(gaussian, noise, karras_sigmas(64), churn=20.0)
    assert drawn.std().item() == pytest.approx(STD, rel=0.03)  # 64 steps are a little too few
    assert not torch.allclose(drawn, heun(gaussian, noise, karras_sigmas(64)), atol=0.1)


def test_the_state_is_float64_between_float32_evaluations():
    """A float32 state loses the small last steps; the difference to float64 shows which it is."""
    dtypes = set()

    def denoise(noisy, sigma, labels):
        dtypes.add(noisy.dtype)
        return gaussian(noisy.double(), sigma, labels)

    noise = unit_noise().float()
    drawn = heun(denoise, noise, karras_sigmas(100))
    assert dtypes == {torch.float32}
    assert drawn.dtype == torch.float32
    reference = heun(gaussian, noise.double(), karras_sigmas(100))
    assert torch.allclose(drawn.double(), reference, atol=1e-6)


def test_images_do_not_influence_each_other_and_labels_pass_through():
    def denoise(noisy, sigma, labels):
        return gaussian(noisy, sigma, None) + 0.01 * labels.view(-1, 1, 1, 1)

    noise, labels = unit_noise(), torch.arange(4)
    whole = heun(denoise, noise, karras_sigmas(8), labels)
    for row in range(4):
        one = heun(denoise, noise[row : row + 1], karras_sigmas(8), labels[row : row + 1])
        assert torch.allclose(one[0], whole[row])


def test_steps_are_reported():
    seen = []
    heun(
        gaussian,
        unit_noise().float(),
        karras_sigmas(5),
        on_step=lambda step, state: seen.append((step, state.dtype)),
    )
    assert seen == [(step, torch.float64) for step in (1, 2, 3, 4, 5)]
