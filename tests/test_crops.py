import pytest
import torch

from legodiff.evaluate.crops import (
    CropDistances,
    canvas_distances,
    compare,
    grid_crops,
    random_crops,
)
from legodiff.evaluate.lpips import Perceptual, as_floats, gradients

ONE_LINE = r"^[^\n]*{}[^\n]*$"


def pixels(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def colours(images):
    """A trunk: the image, and the image at half the size."""
    return [images + 1, torch.nn.functional.avg_pool2d(images, 2)]


@pytest.fixture
def distance():
    weights = [torch.tensor([1.0, 0.5, 0.25]), torch.tensor([2.0, 0.0, 1.0])]
    return Perceptual("PD-colours", colours, weights)


@pytest.mark.parametrize("size", [(4, 6), (12, 18), (5, 7), (12, 1)])
def test_a_grid_tiles_the_canvas(size):
    canvas = pixels(3, 12, 18)
    rows, columns = 12 // size[0], 18 // size[1]
    crops = grid_crops(canvas, size)
    assert crops.shape == (rows * columns, 3, *size)
    lines = [torch.cat(list(row), dim=2) for row in crops.split(columns)]
    whole = torch.cat(lines, dim=1)
    assert torch.equal(whole, canvas[:, : rows * size[0], : columns * size[1]])


def test_random_crops_are_of_the_canvas_and_reach_all_of_it():
    numbers = torch.arange(9 * 11).view(1, 9, 11).to(torch.uint8)
    crops = random_crops(numbers, (8, 9), 200, seed=3)
    corners = crops[:, 0, 0, 0]
    assert set(corners.tolist()) == {11 * y + x for y in (0, 1) for x in (0, 1, 2)}
    for crop, corner in zip(crops, corners.tolist(), strict=True):
        y, x = divmod(corner, 11)
        assert torch.equal(crop, numbers[:, y : y + 8, x : x + 9])
    assert torch.equal(crops, random_crops(numbers, (8, 9), 200, seed=3))
    assert not torch.equal(crops, random_crops(numbers, (8, 9), 200, seed=4))


def test_of_the_size_of_the_canvas_there_is_one_crop():
    canvas = pixels(3, 12, 18)
    assert torch.equal(grid_crops(canvas, (12, 18)), canvas[None])
    assert torch.equal(random_crops(canvas, (12, 18), 2, seed=0), canvas.repeat(2, 1, 1, 1))


@pytest.mark.parametrize("size", [(13, 4), (4, 19), (0, 4)])
def test_crops_larger_than_the_canvas_are_one_line(size):
    for crop in (
        lambda: grid_crops(pixels(3, 12, 18), size),
        lambda: random_crops(pixels(3, 12, 18), size, 1, 0),
    ):
        with pytest.raises(
            ValueError, match=ONE_LINE.format("a canvas of 12x18 pixels has no crop")
        ):
            crop()
    with pytest.raises(ValueError, match="count is 0; it must be 1 or more"):
        random_crops(pixels(3, 12, 18), (4, 4), 0, 0)


@pytest.mark.parametrize(("batch", "memory"), [(1, 1), (3, 5_000), (4, 2**31), (100, 2**31)])
def test_in_blocks_it_is_what_pairs_give(batch, memory, distance, monkeypatch):
    monkeypatch.setattr("legodiff.evaluate.crops.PART", 50)
    crops, reference = pixels(7, 3, 8, 8), pixels(10, 3, 8, 8, seed=1)
    found = canvas_distances(distance, crops, reference, batch, memory)
    table = torch.stack(
        [distance(as_floats(crops), as_floats(other.repeat(7, 1, 1, 1))) for other in reference], 1
    ).double()  # (7, 10)
    assert torch.allclose(found.nearest, table.min(dim=1).values, atol=1e-6)
    assert torch.equal(found.number, table.argmin(dim=1))
    assert torch.allclose(found.mean, table.mean(dim=1), atol=1e-6)
    assert table.min() > 0.1


def test_a_crop_of_the_reference_is_nearest_to_itself(distance):
    reference = pixels(9, 3, 8, 8)
    order = torch.tensor([4, 0, 8, 4])
    found = canvas_distances(distance, reference[order], reference, batch=2)
    assert torch.equal(found.number, order)
    assert found.nearest.max() < 1e-6
    assert found.mean.min() > 0.1


def test_grey_is_compared_with_colours(distance):
    crops, reference = pixels(4, 1, 8, 8), pixels(5, 1, 8, 8, seed=1)
    found = canvas_distances(distance, crops, reference.repeat(1, 3, 1, 1))
    same = canvas_distances(distance, crops.repeat(1, 3, 1, 1), reference)
    assert all(torch.equal(a, b) for a, b in zip(found, same, strict=True))


def test_the_network_sees_no_image_twice_where_there_is_memory():
    seen = []

    def watched(images):
        seen.append(len(images))
        return colours(images)

    distance = Perceptual("PD", watched, [torch.ones(3)] * 2)
    features = 3 * 64 + 3 * 16
    canvas_distances(distance, pixels(6, 3, 8, 8), pixels(10, 3, 8, 8), batch=4)
    assert seen == [1, 4, 2, 4, 4, 2]  # the first one is to learn how many features there are
    seen.clear()
    canvas_distances(distance, pixels(6, 3, 8, 8), pixels(10, 3, 8, 8), 5, memory=4 * 4 * features)
    assert seen == [1, 4, 5, 5, 2, 5, 5]


def test_spreads_are_over_all_crops():
    nearest, mean = torch.tensor([1.0, 3.0]), torch.tensor([5.0, 5.0])
    found = CropDistances(nearest.double(), torch.tensor([0, 1]), mean.double()).spreads()
    assert found == ((2.0, 1.0), (5.0, 0.0))


@pytest.mark.parametrize(
    ("crops", "reference"),
    [((2, 3, 8, 8), (2, 3, 8, 6)), ((0, 3, 8, 8), (2, 3, 8, 8)), ((2, 3, 8, 8), (0, 3, 8, 8))],
)
def test_images_that_cannot_be_compared_are_one_line(crops, reference, distance):
    with pytest.raises(
        ValueError, match=ONE_LINE.format("must be of one size, and at least one each")
    ):
        canvas_distances(distance, pixels(*crops), pixels(*reference))


def test_a_cell_of_the_table_says_what_it_is_of():
    """Crops that are among the reference are 0 from their nearest; the rest is by hand."""
    generator = torch.Generator().manual_seed(0)
    canvases = [
        torch.randint(0, 256, (3, 16, width), dtype=torch.uint8, generator=generator)
        for width in (24, 19)
    ]
    crops = torch.cat([grid_crops(canvas, (8, 8)) for canvas in canvases])
    plain = gradients()
    cells = compare(plain, canvases, crops)
    assert [cell.name for cell in cells] == [
        f"PD-gradients-{way}-8({to} of 10)"
        for way in ("grid", "random")
        for to in ("nearest", "mean")
    ]
    assert {cell.crops for cell in cells} == {10}
    assert cells[0].spread == pytest.approx((0, 0), abs=1e-6)
    floats = as_floats(crops)
    pairs = torch.stack([plain(floats, floats.roll(shift, 0)) for shift in range(10)])
    assert cells[1].spread.mean == pytest.approx(float(pairs.mean()), rel=1e-5)
    assert cells[2].spread.mean > 0.01
    assert compare(plain, canvases, crops, seed=7)[2] != cells[2]
    twice = [compare(plain, [canvases[0]] * count, crops)[2].spread for count in (1, 2)]
    assert twice[0] != twice[1]  # each canvas has places of its own
    wide = compare(plain, canvases, torch.zeros(2, 3, 16, 8, dtype=torch.uint8))
    assert wide[0].name == "PD-gradients-grid-16x8(nearest of 2)"
