import pytest
import torch

from legodiff.evaluate.kernel import kernel_distance


def features(seed, count=60, dim=5, shift=0.0):
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed)) + shift


def test_it_is_torchmetrics():
    poly_mmd = pytest.importorskip("torchmetrics.image.kid").poly_mmd
    a, b = features(0).double(), features(1, shift=0.5).double()
    found = kernel_distance(a, b, subsets=3, size=1000)
    assert found.mean == pytest.approx(float(poly_mmd(a, b)), rel=1e-9)
    assert found.std == pytest.approx(0, abs=1e-9)  # every subset is all


def test_by_hand():
    """Two pairs of numbers: kernels (x y + 1)³ without the ones of a number with itself."""
    a, b = torch.tensor([[0.0], [1.0]]), torch.tensor([[2.0], [3.0]])
    expected = 1.0 + 7.0**3 - 2 * (1 + 1 + 3.0**3 + 4.0**3) / 4
    assert kernel_distance(a, b).mean == pytest.approx(expected)


def test_it_is_zero_on_average_for_one_distribution_and_grows_with_a_shift():
    a = features(0, 4000)
    same = kernel_distance(a[:2000], a[2000:], size=500)
    far = kernel_distance(a[:2000], a[2000:] + 0.3, size=500)
    assert abs(same.mean) < 3 * same.std / 100**0.5 + 0.02
    assert far.mean > 10 * abs(same.mean)
    assert kernel_distance(a[:2000], a[2000:], seed=1).mean != same.mean


def test_nonsense_is_refused():
    with pytest.raises(ValueError, match="at least two"):
        kernel_distance(features(0)[:1], features(1))
