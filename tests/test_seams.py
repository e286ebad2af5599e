import numpy as np
import pytest

from legodiff.evaluate.seams import seams


def smooth(count=40, size=64):
    """Images whose neighbours differ alike everywhere."""
    rng = np.random.default_rng(0)
    return rng.normal(size=(count, size, size, 1)).cumsum(axis=1).cumsum(axis=2)


def test_images_without_seams_have_a_ratio_of_one():
    noise = np.random.default_rng(0).normal(size=(60, 64, 64, 3))
    found = seams(noise, rows=range(8, 64, 8), columns=range(8, 64, 8))
    assert found.ratio == pytest.approx(1, abs=0.01)
    assert found.low < 1 < found.high
    assert found.high - found.low < 0.02


def test_a_seam_is_as_large_as_it_was_made():
    images = np.zeros((5, 4, 8))
    images[:, :, 1::2] = 1  # neighbours in a row differ by one
    images[:, :, 4:] += 2  # and across the border by two less or more
    found = seams(images, columns=[4])
    assert found.ratio == pytest.approx(1.0)  # 3 -> |0 + 2 - 1| = 1
    images[:, :, 4:] += 2
    assert seams(images, columns=[4]).ratio == pytest.approx(3.0)
    turned = np.swapaxes(images, 1, 2)
    assert seams(turned, rows=[4]).ratio == pytest.approx(3.0)


def test_colours_and_grey_agree():
    grey = smooth()[..., 0]
    assert seams(grey, [8], [16]) == seams(np.stack([grey] * 3, axis=-1), [8], [16])


def test_the_interval_shrinks_with_more_images():
    images = np.random.default_rng(1).normal(size=(400, 16, 16))
    wide, narrow = seams(images[:10], columns=[8]), seams(images, columns=[8])
    assert narrow.high - narrow.low < 0.4 * (wide.high - wide.low)


@pytest.mark.parametrize("columns", [[], [0], [16], range(1, 16)])
def test_borders_that_are_none_are_refused(columns):
    with pytest.raises(ValueError, match="borders"):
        seams(np.zeros((2, 16, 16)), columns=columns)
