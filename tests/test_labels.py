import numpy as np
import pytest
import torch

from legodiff.labels import class_index, pair, whole

NAMES = ("ant", "bee")


def index(label):
    return class_index(label, 2, NAMES)


@pytest.mark.parametrize(
    ("label", "expected"),
    [(0, 0), (np.int64(1), 1), (torch.tensor(1), 1), ("bee", 1), (None, None), (2, None)],
)
def test_a_label_is_an_index_a_name_or_none(label, expected):
    assert index(label) == expected


@pytest.mark.parametrize("label", [3, -1, "cow", 1.0, "1"])
def test_other_labels_are_refused_with_those_there_are(label):
    with pytest.raises(ValueError, match=r"choose from 0 to 1 \(ant, bee\)"):
        index(label)
    with pytest.raises(ValueError, match="trained without classes"):
        class_index(label, 0, ())


def test_labels_and_seeds_are_one_each_or_one_for_all():
    assert pair(None, None, index) == ([None], [0])
    assert pair(["bee", 0], None, index) == ([1, 0], [0, 1])
    assert pair("bee", range(3), index) == ([1, 1, 1], [0, 1, 2])
    assert pair([1], np.array([7, 9]), index) == ([1, 1], [7, 9])
    assert pair(1, 2**63 - 1, index) == ([1], [2**63 - 1])
    for labels, seeds in (([0, 1], [0]), ([], None), (0, [])):
        with pytest.raises(ValueError, match="give one label for each seed"):
            pair(labels, seeds, index)
    for seeds in (-1, 2**63, 0.5, [0, "1"]):
        with pytest.raises(ValueError, match="a seed must be a whole number"):
            pair(0, seeds, index)


def test_whole_numbers_are_those_that_index_a_list():
    assert [whole(value) for value in (3, np.int8(3), True, 3.0, "3", None)] == [
        *(3, 3, 1, None, None, None)
    ]
