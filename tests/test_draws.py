import pytest
import torch

from legodiff import preset
from legodiff.config import TrainConfig
from legodiff.noise import ddpm_sigmas
from legodiff.train.draws import BLOCK, draw, draw_bricks, mix, normals

CPU = torch.device("cpu")


def chance(positions, spec=None, seed=0, **settings):
    spec = spec or preset("tiny-pr-16", channels=1)
    return draw(positions, seed, spec, TrainConfig(**settings), CPU)


@pytest.mark.parametrize("cut", [1, 7, BLOCK, BLOCK + 3])
def test_an_image_meets_the_same_numbers_in_any_company(cut):
    settings = {"fill": "noise", "patch_ratio": 0.5}
    whole = chance(range(5, 60), **settings)
    for first in range(5, 60, cut):
        part = chance(range(first, min(first + cut, 60)), **settings)
        rows = slice(first - 5, first - 5 + cut)
        assert torch.equal(part.noise, whole.noise[rows])
        assert torch.equal(part.sigma, whole.sigma[rows])
        assert torch.equal(part.uniform, whole.uniform[rows])
        assert torch.equal(part.fill, whole.fill[rows])
        for mine, all_ in zip(part.samples, whole.samples, strict=True):
            assert mine is None or torch.equal(mine.index, all_.index[rows])


def test_seeds_positions_and_kinds_are_independent():
    one, other = chance(range(4000)), chance(range(4000), seed=1)
    columns = [one.noise[:, 0, 0, 0], one.noise[:, 0, 7, 3], one.sigma.log(), one.uniform]
    columns += [other.noise[:, 0, 0, 0], one.noise[:, 0, 0, 0].roll(1)]
    assert (torch.corrcoef(torch.stack(columns)) - torch.eye(6)).abs().max() < 0.06


def test_numbers_are_distributed_as_asked():
    drawn = chance(range(20_000), sigma_mean=-0.5, sigma_std=0.7, fill="noise")
    assert drawn.noise.mean().abs() < 0.001
    assert drawn.noise.std().item() == pytest.approx(1, abs=0.001)
    assert drawn.fill.std().item() == pytest.approx(1, abs=0.001)
    assert drawn.sigma.log().mean().item() == pytest.approx(-0.5, abs=0.02)
    assert drawn.sigma.log().std().item() == pytest.approx(0.7, abs=0.02)
    quantiles = drawn.uniform.quantile(torch.tensor([0.1, 0.5, 0.9]))
    assert torch.allclose(quantiles, torch.tensor([0.1, 0.5, 0.9]), atol=0.015)
    ddpm = chance(range(20_000), preset("tiny-pr-16", channels=1, objective="ddpm"))
    assert torch.isin(ddpm.sigma, ddpm_sigmas().float()).all()


def test_patches_follow_ratio_and_order():
    pr, pg = preset("tiny-pr-16"), preset("tiny-pg-16")
    assert [s is None for s in chance(range(2), pr).samples] == [True, False, False]
    assert chance(range(2), pg).samples == [None] * 3  # the default below an image-brick
    samples = chance(range(2), pr, patch_ratio=[1, 1, 0.25]).samples
    assert samples[:2] == [None, None]
    assert samples[2].index.shape == (2, 4)


def test_what_is_drawn_does_not_change_what_else_is_drawn():
    """Runs that differ in ratio or fill meet the same noise: they can be compared in pairs."""
    one, other = chance(range(9), patch_ratio=1.0), chance(range(9), fill="noise", patch_ratio=0.25)
    assert torch.equal(one.noise, other.noise)
    assert torch.equal(one.sigma, other.sigma)


def test_bricks_are_dropped_as_often_as_asked_and_never_all():
    drawn = [draw_bricks(images, 3, 3, 0.3) for images in range(0, 64 * 3000, 64)]
    assert min(map(len, drawn)) == 1
    assert drawn == [draw_bricks(images, 3, 3, 0.3) for images in range(0, 64 * 3000, 64)]
    everything = 0.7**3 / (1 - 0.3**3)
    assert sum(len(kept) == 3 for kept in drawn) / 3000 == pytest.approx(everything, abs=0.03)
    for brick in range(3):
        share = sum(brick in kept for kept in drawn) / 3000
        assert share == pytest.approx(0.7 / (1 - 0.3**3), abs=0.03)
    assert {draw_bricks(images, 3, 3, 0.0) for images in range(50)} == {(0, 1, 2)}
    assert len({draw_bricks(64, seed, 3, 0.5) for seed in range(50)}) == 7  # all subsets but none


def test_seeds_are_mixed_without_collisions():
    seeds = {mix(seed, block) for seed in range(20) for block in range(100)}
    assert len(seeds) == 2000
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_normals_have_their_shapes():
    one, two = normals(range(3, 40), [(2, 5), ()], 0, CPU)
    assert one.shape == (37, 2, 5)
    assert two.shape == (37,)
