import math

import pytest
import torch

from legodiff.diffusion.samplers import (
    SAMPLERS,
    ddim,
    ddpm,
    dpmpp_2m,
    euler,
    heun,
    levels_called,
)
from legodiff.noise import ddpm_sigmas, ddpm_strided_sigmas, karras_sigmas

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


@pytest.mark.parametrize(("sampler", "order"), [(euler, 1), (ddim, 1), (dpmpp_2m, 2)])
def test_the_order_of_the_others(sampler, order):
    noise = torch.ones(1, 1, 1, 1, dtype=torch.float64)
    # To 1e-4 and not to 0: the last step is of first order and would hide that of the others.
    grids = [torch.logspace(1, -4, n + 1, dtype=torch.float64) for n in (64, 128, 256)]
    end = 10 * math.sqrt((STD**2 + 1e-8) / (STD**2 + 100))
    errors = [abs(sampler(gaussian, noise, grid).item() - end) for grid in grids]
    assert errors[0] / errors[1] == pytest.approx(2**order, rel=0.15)
    assert errors[1] / errors[2] == pytest.approx(2**order, rel=0.15)


@pytest.mark.parametrize("steps", [1, 2, 18])
@pytest.mark.parametrize("name", SAMPLERS)
def test_evaluations_and_their_noise_levels_are_exact(steps, name):
    seen = []

    def denoise(noisy, sigma, labels):
        assert sigma.dtype == torch.float32
        assert sigma.shape == (4,)
        assert (sigma == sigma[0]).all()
        seen.append(sigma[0].item())
        return gaussian(noisy, sigma, labels)

    sigmas = karras_sigmas(steps)
    SAMPLERS[name].sample(denoise, unit_noise(), sigmas)
    levels = sigmas[:-1].tolist()
    expected = sorted(levels + levels[1:], reverse=True) if name == "heun" else levels
    assert seen == pytest.approx(expected)
    assert levels_called(name, sigmas) == seen


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


@pytest.mark.parametrize("options", [{"eta": 1.0}, {"eta": 0.5}])
def test_fresh_noise_keeps_the_distribution(options):
    torch.manual_seed(0)
    drawn = ddim(gaussian, unit_noise((1, 1, 200, 200)), karras_sigmas(400), **options)
    assert drawn.std().item() == pytest.approx(STD, rel=0.03)


def scheduled(scheduler, steps, sigmas, noise, to_model, draws=()):
    """Where a scheduler of diffusers ends that is fed with the same model."""
    scheduler.set_timesteps(steps)
    state, draws = noise, list(draws)
    timesteps = scheduler.timesteps
    assert len(timesteps) == len(sigmas) - 1
    for timestep, sigma in zip(timesteps, sigmas.tolist(), strict=False):
        more = {"generator": None} if not draws else {}
        state = scheduler.step(to_model(state, sigma), timestep, state, **more).prev_sample
    return state


def predicted_noise(state, sigma):
    """The noise a perfect DDPM network of this data predicts, from its own coordinates."""
    noisy = state * math.sqrt(1 + sigma**2)
    return (
        noisy - gaussian(noisy, torch.full((len(state),), sigma, dtype=noisy.dtype), None)
    ) / sigma


def start(noise, sigmas):
    """Unit noise that begins our state where DDPM begins: its own is unit normal as a whole."""
    return noise * math.sqrt(1 + sigmas[0] ** 2) / sigmas[0]


@pytest.mark.parametrize("steps", [10, 250, 1000])
def test_ddpm_is_diffusers_on_the_timesteps_of_iddpm(steps, monkeypatch):
    from diffusers import DDPMScheduler
    from diffusers.schedulers import scheduling_ddpm

    scheduler = DDPMScheduler(
        1000, beta_schedule="linear", timestep_spacing="linspace", clip_sample=False
    )
    fresh = [unit_noise(seed=1 + step) for step in range(steps)]
    theirs, mine = iter(fresh), iter(fresh)
    monkeypatch.setattr(scheduling_ddpm, "randn_tensor", lambda *_, **__: next(theirs))
    sigmas, noise = ddpm_strided_sigmas(steps), unit_noise()
    expected = scheduled(scheduler, steps, sigmas, noise, predicted_noise)
    drawn = ddpm(gaussian, start(noise, sigmas), sigmas, draw=lambda: next(mine))
    assert torch.allclose(drawn, expected, atol=1e-4)
    assert len(list(theirs)) == len(list(mine)) == 1  # the last step draws nothing


@pytest.mark.parametrize("eta", [0.0, 0.7, 1.0])
def test_ddim_is_diffusers(eta):
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler(
        1000,
        beta_schedule="linear",
        timestep_spacing="linspace",
        clip_sample=False,
        set_alpha_to_one=True,
    )
    scheduler.set_timesteps(50)
    sigmas, state = ddpm_strided_sigmas(50), unit_noise()
    fresh = [unit_noise(seed=1 + step) for step in range(50)]
    mine = iter(fresh)
    drawn = ddim(gaussian, start(state, sigmas), sigmas, eta=eta, draw=lambda: next(mine))
    # Its steps are 20 timesteps each, and would miss our rounded grid: the table is thinned first.
    table = ddpm_sigmas()
    places = [int((table - sigma).abs().argmin()) for sigma in sigmas[:-1]]
    scheduler.timesteps = torch.tensor(places)
    for number, (place, sigma) in enumerate(zip(places, sigmas.tolist(), strict=False)):
        following = places[number + 1] if number < 49 else -1
        scheduler.num_inference_steps = 1
        scheduler.config.num_train_timesteps = place - following
        state = scheduler.step(
            predicted_noise(state, sigma), place, state, eta=eta, variance_noise=fresh[number]
        ).prev_sample
    assert torch.allclose(drawn, state, atol=1e-4)


def test_euler_is_diffusers():
    from diffusers import EulerDiscreteScheduler

    scheduler = EulerDiscreteScheduler(1000, beta_schedule="linear", timestep_spacing="linspace")
    scheduler.set_timesteps(20)
    sigmas, noise = scheduler.sigmas.double(), unit_noise()
    state = noise * sigmas[0]
    for timestep, sigma in zip(scheduler.timesteps, sigmas.tolist(), strict=False):
        inside = scheduler.scale_model_input(state, timestep)
        state = scheduler.step(predicted_noise(inside, sigma), timestep, state).prev_sample
    assert torch.allclose(euler(gaussian, noise, sigmas), state, atol=1e-4)


def test_dpm_solver_is_diffusers():
    from diffusers import DPMSolverMultistepScheduler

    scheduler = DPMSolverMultistepScheduler(
        1000,
        beta_schedule="linear",
        timestep_spacing="linspace",
        final_sigmas_type="zero",
        lower_order_final=True,
    )
    scheduler.set_timesteps(12)
    sigmas, state = scheduler.sigmas.double(), unit_noise()
    drawn = dpmpp_2m(gaussian, start(state, sigmas), sigmas)
    for timestep, sigma in zip(scheduler.timesteps, sigmas.tolist(), strict=False):
        state = scheduler.step(predicted_noise(state, sigma), timestep, state).prev_sample
    assert torch.allclose(drawn, state, atol=1e-4)


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


@pytest.mark.parametrize("name", SAMPLERS)
def test_images_do_not_influence_each_other_and_labels_pass_through(name):
    sample, fresh = SAMPLERS[name].sample, unit_noise(seed=1)

    def denoise(noisy, sigma, labels):
        return gaussian(noisy, sigma, None) + 0.01 * labels.view(-1, 1, 1, 1)

    noise, labels, sigmas = unit_noise(), torch.arange(4), karras_sigmas(8)
    own = {"draw": lambda: fresh} if name == "ddpm" else {}
    whole = sample(denoise, noise, sigmas, labels, **own)
    for row in range(4):
        part = slice(row, row + 1)
        own = {"draw": lambda part=part: fresh[part]} if name == "ddpm" else {}
        one = sample(denoise, noise[part], sigmas, labels[part], **own)
        assert torch.allclose(one[0], whole[row])


@pytest.mark.parametrize("name", SAMPLERS)
def test_steps_are_reported(name):
    seen = []
    SAMPLERS[name].sample(
        gaussian,
        unit_noise().float(),
        karras_sigmas(5),
        on_step=lambda step, state: seen.append((step, state.dtype)),
    )
    assert seen == [(step, torch.float64) for step in (1, 2, 3, 4, 5)]
