import numpy as np
import pytest
import torch

from legodiff.labels import class_index, labels_of, pair, parse_numbers, whole

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


def labels(text, *names):
    return labels_of("--labels", text, len(names), names)


def test_numbers_and_ranges_are_indices_where_classes_have_other_names():
    assert labels("0-1,bee, 1,none", *NAMES) == [0, 1, 1, 1, None]
    assert labels("2,0-1,two", "2", "1", "two") == [2, 0, 1, 2]  # not all are numbers
    assert labels("0-9,10-19,1", "10-19", "0-9") == [1, 0, 1]
    with pytest.raises(ValueError, match=r"^label 3: choose from 0 to 1 \(ant, bee\)$"):
        labels("0,3", *NAMES)


def test_numbers_and_ranges_are_names_where_all_names_are_numbers():
    assert labels("5,7-8,8", "8", "7", "5") == [2, 1, 0, 0]
    assert labels("1,08,7-8", "001", "7", "08") == [0, 2, 1, 2]
    assert labels("none", "8", "7") == [None]
    for text, number in (("0", 0), ("7,6-8", 6), ("3", 3)):  # 3: an index would be "no class"
        line = rf"^--labels {text}: there is no class {number}; choose from 8, 7, 5$"
        with pytest.raises(ValueError, match=line):
            labels(text, "8", "7", "5")
    with pytest.raises(ValueError, match=r"no class 7; choose from 10, 11, .*, 21, \.\.\.$"):
        labels("7", *map(str, range(10, 23)))
    assert class_index(1, 3, ("8", "7", "5")) == 1  # in Python a number is an index


@pytest.mark.parametrize("text", ["9-5", "0-3,9-5", "9-5,0-3"])
def test_no_range_is_left_out(text):
    line = rf"^--seeds {text}: a range is empty; write the smaller number first: 5-9$"
    with pytest.raises(ValueError, match=line):
        parse_numbers("--seeds", text)
    assert parse_numbers("--seeds", "0-1, 7,3-3") == [0, 1, 7, 3]


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
