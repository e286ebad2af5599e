import numpy as np
import pytest

from legodiff.studio.painting import COLOURS, SIDE, label_map


def painted(*rows):
    """What an editor gives: colours by number, None where nothing is."""
    image = np.zeros((len(rows), len(rows[0]), 4), np.uint8)
    for at, row in enumerate(rows):
        for column, number in enumerate(row):
            if number is not None:
                colour = bytes.fromhex(COLOURS[number][1:])
                image[at, column] = (*colour, 255)
    white = np.full_like(image, 255)
    return {"background": None, "layers": [image], "composite": np.maximum(image, white)}


def test_colours_are_classes_and_white_is_none():
    found = label_map(painted([0, 2, None], [1, 1, None]), classes=3, none=10)
    assert found.tolist() == [[0, 2, 10], [1, 1, 10]]


def test_a_blurred_edge_is_the_nearest_class():
    value = painted([0, 1])
    value["layers"][0][0, 0, :3] = (200, 60, 90)  # not quite the first
    value["layers"][0][0, 1, 3] = 90  # faint
    assert label_map(value, classes=8, none=8).tolist() == [[0, 8]]


def test_only_colours_of_the_brush_count():
    assert label_map(painted([7]), classes=2, none=2).item() in (0, 1)


@pytest.mark.parametrize("value", [None, {}, {"layers": []}, painted([None, None])])
def test_nothing_is_painted(value):
    assert label_map(value, classes=3, none=3) is None


def test_another_picture_is_refused():
    with pytest.raises(ValueError, match="paint it again"):
        label_map({"layers": [np.zeros((2, 2, 3), np.uint8)]}, classes=3, none=3)


def test_a_picture_far_larger_than_the_editor_is_refused():
    width, height = SIDE
    twice = np.zeros((2 * height, 2 * width, 4), np.uint8)
    twice[0, 0] = 255
    assert label_map({"layers": [twice]}, classes=3, none=3).shape == (2 * height, 2 * width)
    with pytest.raises(ValueError, match=r"has 1025x384 pixels, .* 512x192 of the editor; paint"):
        label_map({"layers": [np.pad(twice, ((0, 0), (0, 1), (0, 0)))]}, classes=3, none=3)
