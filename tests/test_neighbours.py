from functools import partial

import pytest
import torch

from legodiff.evaluate import neighbours
from legodiff.evaluate.bench import peak_memory
from legodiff.evaluate.neighbours import nearest, precision_recall


def features(seed, count=120, dim=4, shift=0.0, scale=1.0):
    normal = torch.randn(count, dim, generator=torch.Generator().manual_seed(seed))
    return normal * scale + shift


@pytest.mark.parametrize("block", [7, 1024])
@pytest.mark.parametrize("shift", [0.0, 0.7, 3.0])
def test_it_is_prdc(block, shift, monkeypatch):
    prdc = pytest.importorskip("prdc")
    monkeypatch.setattr(neighbours, "BLOCK", block)
    real, generated = features(0), features(1, 90, shift=shift, scale=0.8)
    found = precision_recall(real=real, generated=generated, k=3)
    expected = prdc.compute_prdc(real.numpy(), generated.numpy(), nearest_k=3)
    assert found.precision == pytest.approx(expected["precision"])
    assert found.recall == pytest.approx(expected["recall"])


def test_a_collapsed_generator_is_precise_and_recalls_little():
    real = features(0, 1000)
    generated = real[:1] + features(1, 1000, scale=1e-3)
    found = precision_recall(real=real, generated=generated)
    assert found.precision == 1
    assert found.recall < 0.01
    wide = precision_recall(real=generated, generated=real)
    assert (wide.precision, wide.recall) == (found.recall, found.precision)


def test_real_and_generated_are_kept_apart_by_name():
    with pytest.raises(TypeError):
        precision_recall(features(0), features(1))


def test_the_same_set_twice_is_all_inside():
    real = features(0)
    assert precision_recall(real=real, generated=real.clone()) == (1, 1)


def test_copies_of_a_feature_do_not_count_as_itself():
    real = features(0, 20).repeat(2, 1)  # everyone has a twin at distance 0
    radius = neighbours._radius(real, 1)
    assert radius.abs().max() < 1e-4


def test_nearest_is_the_nearest(monkeypatch):
    monkeypatch.setattr(neighbours, "BLOCK", 16)
    some, others = features(0, 50, shift=100.0), features(1, 70, shift=100.0)
    found = nearest(some, others)
    distances = torch.cdist(some.double(), others.double())
    assert torch.equal(found.number, distances.argmin(dim=1))
    assert torch.allclose(found.distance.double(), distances.min(dim=1).values, atol=1e-3)


def test_memory_does_not_grow_with_the_square():
    """Blocks of rows, of which none is kept: what there is at once, counted."""

    def peak(count):
        real, generated = features(0, count), features(1, count)
        run = partial(precision_recall, real=real, generated=generated)
        return peak_memory(run, torch.device("cpu"))

    small, large = peak(2000), peak(8000)
    assert large < 5 * small
    each = large / 8000  # bytes of an image more
    assert small + 50_000 * each < 4e9
    assert 4 * 50_000**2 > 4e9  # what a whole table of distances would take


def test_nonsense_is_refused():
    with pytest.raises(ValueError, match="more than 3 images on each side"):
        precision_recall(real=features(0)[:3], generated=features(1))
