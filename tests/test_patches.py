import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from legodiff.model.patches import PatchSample, coordinates, merge, split

few = st.integers(1, 4)


@settings(max_examples=50, deadline=None)
@given(batch=few, channels=few, rows=few, columns=few, height=few, width=few)
def test_round_trip_is_exact_for_any_shape(batch, channels, rows, columns, height, width):
    image = torch.randn(batch, channels, rows * height, columns * width)
    pieces = split(image, (height, width))
    assert pieces.shape == (batch, rows * columns, channels, height, width)
    assert torch.equal(merge(pieces, (rows * height, columns * width)), image)


def test_pieces_are_numbered_row_by_row():
    image = torch.randn(2, 3, 8, 12)
    pieces = split(image, 4)
    assert torch.equal(pieces[:, 0], image[:, :, :4, :4])
    assert torch.equal(pieces[:, 1], image[:, :, :4, 4:8])
    assert torch.equal(pieces[:, 5], image[:, :, 4:, 8:])


def test_split_nests():
    patches = torch.randn(2, 6, 3, 8, 8)  # leading dimensions are left alone
    fields = split(patches, 2)
    assert fields.shape == (2, 6, 16, 3, 2, 2)
    assert torch.equal(fields[1, 4], split(patches[1, 4], 2))
    assert torch.equal(merge(fields, (8, 8)), patches)


def test_a_side_that_does_not_divide_is_refused():
    with pytest.raises(ValueError, match="5x5 do not divide an image of 8x10"):
        split(torch.zeros(1, 1, 8, 10), 5)


def test_coordinates_are_row_then_column():
    grid = coordinates((3, 5), torch.device("cpu"))
    assert grid[0].tolist() == [[-1.0] * 5, [0.0] * 5, [1.0] * 5]
    assert grid[1].tolist() == [[-1.0, -0.5, 0.0, 0.5, 1.0]] * 3


def test_cached_coordinates_serve_training_after_inference():
    with torch.inference_mode():
        coordinates((7, 9), torch.device("cpu"))
    weight = torch.ones(1, requires_grad=True)
    (coordinates((7, 9), torch.device("cpu")) * weight).sum().backward()


@pytest.mark.parametrize(("ratio", "kept"), [(0.01, 1), (0.25, 2), (0.5, 4), (0.8, 6)])
def test_sample_takes_and_puts_the_patches_of_its_mask(ratio, kept):
    size, side = (8, 16), (4, 4)
    image = torch.randn(5, 3, *size)
    sample = PatchSample.choose(torch.rand(5, 8), ratio, side, size)
    pieces = sample.take(split(image, side))
    assert pieces.shape == (5, kept, 3, 4, 4)
    back = merge(sample.put(pieces), size)
    assert torch.equal(back, torch.where(sample.mask, image, 0))
    assert sample.mask.sum(dim=(1, 2, 3)).tolist() == [kept * 16] * 5  # none drawn twice


def test_the_lowest_scores_are_chosen():
    scores = torch.tensor([[0.3, 0.1, 0.2, 0.4], [0.0, 0.9, 0.8, 0.1]])
    sample = PatchSample.choose(scores, 0.5, (4, 4), (8, 8))
    assert sample.index.tolist() == [[1, 2], [0, 3]]


def test_every_patch_is_drawn_as_often():
    scores = torch.rand(8000, 4, generator=torch.Generator().manual_seed(0))
    sample = PatchSample.choose(scores, 0.5, (4, 4), (8, 8))
    shares = sample.mask.float().mean(dim=0)
    assert torch.allclose(shares, torch.tensor(0.5), atol=0.03)
