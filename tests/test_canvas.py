from collections import Counter

import pytest
import torch

from legodiff.diffusion.canvas import Windows, looks, windowed
from legodiff.diffusion.regions import Regions, across
from legodiff.diffusion.samplers import SAMPLERS
from legodiff.noise import karras_sigmas

SIGMAS = karras_sigmas(4)
WRAPS = [(False, False), (True, False), (False, True), (True, True)]


def noise(size, batch=1, seed=0):
    return torch.randn(batch, 1, *size, generator=torch.Generator().manual_seed(seed))


def pointwise(noisy, sigma, labels):
    """A denoiser of single pixels: windows must not change it."""
    shrink = 0.25 / (0.25 + sigma**2)
    estimate = shrink.view(-1, 1, 1, 1) * noisy
    return estimate if labels is None else estimate + 0.1 * labels.view(-1, 1, 1, 1)


@pytest.mark.parametrize("stride", [None, 3, 8])
@pytest.mark.parametrize("name", SAMPLERS)
def test_one_window_is_plain_sampling_to_the_bit(stack, name, stride):
    labels, begin = torch.tensor([3, 4]), noise((16, 16), 2)
    own = {"draw": lambda: noise((16, 16), 2, seed=5)} if SAMPLERS[name].draws else {}
    regions = Regions((3,), torch.ones(1, 16, 16))
    with torch.no_grad():
        plain = SAMPLERS[name].sample(stack, begin, SIGMAS, labels, **own)
        canvas = windowed(stack, Windows((16, 16), stride), SIGMAS)
        assert torch.equal(SAMPLERS[name].sample(canvas, begin, SIGMAS, labels, **own), plain)
        same = torch.tensor([3, 3])
        plain = SAMPLERS[name].sample(stack, begin, SIGMAS, same, **own)
        canvas = windowed(stack, Windows((16, 16), stride), SIGMAS, regions)
        assert torch.equal(SAMPLERS[name].sample(canvas, begin, SIGMAS, None, **own), plain)


@pytest.mark.parametrize("wrap", WRAPS)
@pytest.mark.parametrize("size", [(8, 8), (8, 20), (21, 8), (33, 50)])
@pytest.mark.parametrize(("stride", "margin"), [(None, 0), (None, 3), (1, 0), (5, 0), (8, 0)])
def test_every_pixel_is_seen_and_a_pointwise_denoiser_is_unchanged(wrap, size, stride, margin):
    windows = Windows((8, 8), stride, margin, wrap)
    noisy = noise(size, 2)
    for level in (0.03, 0.7, 31.0):
        sigma = torch.full((2,), level)
        for labels in (None, torch.tensor([1, 2])):
            drawn = windowed(pointwise, windows, (31.0, 0.7, 0.03))(noisy, sigma, labels)
            assert torch.allclose(drawn, pointwise(noisy, sigma, labels), atol=1e-5)


def test_strides_are_the_papers():
    windows = Windows((8, 8), stride=7)
    assert windows.places((8, 22), 0) == [(0, 0), (0, 7), (0, 14)]
    assert windows.places((8, 24), 0) == [(0, 0), (0, 7), (0, 14), (0, 16)]  # the last one fits
    wrapped = Windows((8, 8), stride=7, wrap=(False, True))
    assert wrapped.places((8, 22), 0) == [(0, 0), (0, 7), (0, 14), (0, 21)]


def test_estimates_are_averaged_where_windows_overlap():
    seen = []

    def numbered(noisy, sigma, labels):
        seen.append(len(noisy))
        first = sum(seen[:-1]) + 1.0
        return (first + torch.arange(len(noisy))).view(-1, 1, 1, 1).expand_as(noisy)

    windows = Windows((4, 4), stride=2, batch=2)
    drawn = windowed(numbered, windows, [1.0])(noise((4, 8)), torch.ones(1), None)
    assert drawn[0, 0, 0].tolist() == [1, 1, 1.5, 1.5, 2.5, 2.5, 3, 3]
    assert seen == [2, 1]  # at most so many at a time


@pytest.mark.parametrize("wrap", WRAPS)
def test_shifted_windows_see_each_pixel_once(wrap):
    windows = Windows((8, 8), wrap=wrap)
    canvas = windows.drawn((64, 96))
    assert canvas == (64 if wrap[0] else 72, 96 if wrap[1] else 104)
    for turn in range(9):
        seen = torch.zeros(canvas, dtype=torch.int64)
        for row, column in windows.places(canvas, turn):
            rows, columns = (torch.arange(8) + row) % canvas[0], (torch.arange(8) + column)
            seen[rows[:, None], columns % canvas[1]] += 1
        assert seen.min() == seen.max() == 1


@pytest.mark.parametrize("grid", [SIGMAS, karras_sigmas(18)])
def test_windows_move_with_the_noise_level_and_with_nothing_else(grid):
    places = []

    def denoise(noisy, sigma, labels):
        places.append((float(sigma[0]), noisy[0, 0, 0, 0].item()))
        return torch.zeros_like(noisy)

    # Each pixel tells where it is.
    canvas = torch.arange(24.0).expand(1, 1, 24, 24)
    levels = [float(level) for level in grid[:-1] for _ in range(2)]  # float64, and each twice
    draw = windowed(denoise, Windows((8, 8), wrap=(True, True), batch=99), levels)
    for level in (*levels, *levels):
        draw(canvas, torch.full((1,), level), None)
    assert len(set(places)) == len(grid) - 1  # the same level, the same place
    first = [column for _, column in dict.fromkeys(places)]
    assert first == [turn * 5 % 8 for turn in range(len(grid) - 1)]


@pytest.mark.parametrize("step", [8, 16, 24, 28, 32, 64, 7, 1])
def test_every_shift_has_its_turn_and_small_patches_have_theirs(step):
    windows = Windows((step, step), wrap=(True, True))
    starts = [windows.places((2 * step, 3 * step), turn)[0] for turn in range(step)]
    for axis in (0, 1):
        assert sorted(start[axis] for start in starts) == list(range(step))
        for patch in (4, 8):
            if step % patch == 0:  # any few levels in a row see borders everywhere in a patch
                for begin in range(step - patch + 1):
                    phases = {start[axis] % patch for start in starts[begin : begin + patch]}
                    assert len(phases) == patch


@pytest.mark.parametrize("margin", [0, 1, 3, 4])
@pytest.mark.parametrize("length", [9, 16, 37])
def test_no_window_sees_two_ends_of_a_canvas_that_does_not_wrap(length, margin):
    windows = Windows((8, 8), margin=margin)
    drawn = windows.drawn((8, length))
    assert drawn[0] == 8  # one window high: nothing to cut away
    assert drawn[1] < length + 8 + 8
    assert windows.drawn((8, 8)) == (8, 8)
    for turn in range(20):
        for _, column in windows.places(drawn, turn):
            seen = {(column + pixel) % drawn[1] for pixel in range(8)}
            assert not {0, length - 1} <= seen
    assert Windows((8, 8), stride=8).drawn((8, length)) == (8, length)


def test_regions_go_on_across_the_gap():
    windows, regions = Windows((8, 8)), across([1, 5], (8, 16))
    size = windows.drawn((8, 16))
    drawn = windowed(pointwise, windows, [1.0], regions)(
        torch.zeros(1, 1, *size), torch.ones(1), None
    )
    assert size == (8, 24)
    assert (drawn[0, 0, 0] / 0.1).round().tolist() == [1] * 8 + [5] * 12 + [1] * 4


@pytest.mark.parametrize("axis", [0, 1])
def test_a_wrapped_canvas_has_no_ends(axis):
    """Rolled noise gives the rolled image, if every pixel is seen from everywhere."""
    wrap = (axis == 0, axis == 1)
    size = (8, 24) if axis else (24, 8)

    def blur(noisy, sigma, labels):
        return 0.5 * (noisy + noisy.mean(dim=(2, 3), keepdim=True))

    denoise = windowed(blur, Windows((8, 8), stride=1, wrap=wrap), [1.0])
    noisy, sigma = noise(size), torch.ones(1)
    rolled = denoise(noisy.roll(5, 2 + axis), sigma, None)
    assert torch.allclose(rolled, denoise(noisy, sigma, None).roll(5, 2 + axis), atol=1e-5)


def test_regions_give_each_pixel_its_class_and_mix_at_the_border():
    regions = across([1, 5], (8, 24), blend=2)
    noisy, sigma = noise((8, 24)), torch.ones(1)
    asked = []

    def denoise(noisy, sigma, labels):
        asked.extend(labels.tolist())
        return pointwise(noisy, sigma, labels)

    drawn = windowed(denoise, Windows((8, 8), stride=8), [1.0], regions)(noisy, sigma, None)
    classes = ((drawn - pointwise(noisy, sigma, None)) / 0.1)[0, 0, 0]
    assert classes[:10] == pytest.approx(torch.ones(10), abs=1e-4)
    assert classes[14:] == pytest.approx(torch.full((10,), 5.0), abs=1e-4)
    assert classes[10:14].tolist() == pytest.approx([1.8, 2.6, 3.4, 4.2], abs=1e-4)
    assert sorted(asked) == [1, 1, 5, 5]  # the window in the middle is asked for both


@pytest.mark.parametrize("labels", [None, [0, 1], [0, 1, 0, 2]])
@pytest.mark.parametrize(("stride", "margin"), [(None, 0), (None, 3), (5, 0)])
@pytest.mark.parametrize("wrap", [(False, False), (False, True)])
def test_each_window_is_told_and_counted_beforehand(stride, margin, wrap, labels):
    windows, canvas = Windows((8, 8), stride, margin, wrap, batch=3), (20, 40)
    regions = None if labels is None else across(labels, canvas, blend=4, wrap=wrap)
    told, noisy, sigma = [], noise(windows.drawn(canvas)), torch.full((1,), SIGMAS[0])
    denoise = windowed(
        pointwise, windows, SIGMAS, regions, lambda at, estimate: told.append((at, estimate))
    )
    denoise(noisy, sigma, None)
    assert len(told) == looks(windows, canvas, regions)
    places = windows.places(windows.drawn(canvas), 0)
    seen = Counter(at for at, _ in told)
    assert set(seen) == set(places)
    assert (max(seen.values()) > 1) == (labels is not None)  # where classes fade into each other
    for (row, column), estimate in told:
        rolled = noisy.roll((-row, -column), (-2, -1))[..., :8, :8]
        plain = pointwise(rolled, sigma, None)[0]
        label = ((estimate - plain) / 0.1).mean().round()
        assert torch.allclose(estimate, plain + 0.1 * label, atol=1e-6)


def test_nonsense_is_refused():
    for words, message in (
        ({"stride": 0}, "stride is 0; it must be from 1 to the window's 8"),
        ({"stride": 9}, "stride is 9"),
        ({"margin": 5}, "margin is 5; it must be from 0 to half a window, 4"),
        ({"batch": 0}, "batch is 0"),
    ):
        with pytest.raises(ValueError, match=message):
            Windows((8, 8), **words)
