import numpy as np
import pytest
import scipy.linalg
import torch

from legodiff.evaluate.frechet import Gaussian, Moments, frechet_distance


def gaussians(dim=6, count=200, seed=0):
    rng = np.random.default_rng(seed)
    mix = rng.normal(size=(dim, dim))
    return rng.normal(size=(count, dim)), rng.normal(size=(count, dim)) @ mix + 1.5


def test_it_is_the_formula_with_a_matrix_root():
    """Independently: scipy's square root of the product of the covariances."""
    a, b = gaussians()
    s, t = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    shift = a.mean(0) - b.mean(0)
    expected = shift @ shift + np.trace(s + t - 2 * scipy.linalg.sqrtm(s @ t).real)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-8)


def test_a_shift_alone_costs_its_square():
    a, _ = gaussians()
    assert frechet_distance(a, a + 3.0) == pytest.approx(6 * 9.0)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)


def test_one_dimension_by_hand():
    a, b = np.array([[0.0], [2.0]]), np.array([[1.0], [7.0]])
    s, t = np.std([0, 2], ddof=1), np.std([1, 7], ddof=1)
    assert frechet_distance(a, b) == pytest.approx(3.0**2 + (s - t) ** 2)


def test_fewer_images_than_features_and_constant_features():
    a, b = gaussians(dim=30, count=10)
    a[:, 0] = b[:, 0] = 1.0
    assert np.isfinite(frechet_distance(a, b))
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-6)


def test_nonsense_is_refused():
    a, b = gaussians()
    with pytest.raises(ValueError, match="at least two"):
        frechet_distance(a[:1], b)
    a[3, 2] = np.nan
    with pytest.raises(ValueError, match="finite"):
        frechet_distance(a, b)


def test_batches_and_processes_give_the_same_gaussian():
    a, _ = gaussians(count=101)
    a = a * 1e-3 + 1e4  # far from zero: sums of squares alone would lose it
    whole = Gaussian.fit(a)
    parts = [Moments(), Moments(), Moments()]
    for number, batch in enumerate(np.array_split(a, 12)):
        parts[number % 2].add(torch.as_tensor(batch))
    parts[2].merge(parts[0])
    parts[2].merge(parts[1])
    parts[2].merge(Moments())
    merged = parts[2].gaussian()
    assert torch.allclose(merged.mean, whole.mean, rtol=1e-14)
    assert torch.allclose(merged.covariance, whole.covariance, rtol=1e-6, atol=1e-16)
    expected = torch.as_tensor(np.cov(a, rowvar=False))
    assert torch.allclose(whole.covariance, expected, rtol=1e-6, atol=1e-16)
