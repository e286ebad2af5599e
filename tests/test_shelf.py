import pytest

from legodiff.studio.shelf import Shelf


@pytest.fixture
def shelf():
    return Shelf(limit=250)


def test_the_oldest_make_room(shelf):
    paths = [shelf.put(bytes(100), f"{number}.png") for number in range(3)]
    assert [shelf.has(path) for path in paths] == [False, True, True]
    assert shelf.size == 200
    assert shelf.get(paths[2]) == (bytes(100), "2.png")
    large = shelf.put(bytes(1000), "large.png")  # one is always kept
    assert shelf.has(large)
    assert not shelf.has(paths[2])
    assert shelf.size == 1000


def test_equal_pictures_are_one(shelf):
    first = shelf.put(bytes(100), "0.png")
    other = shelf.put(bytes(100), "1.png")
    assert shelf.put(bytes(100), "0.png") == first != other
    assert shelf.size == 200
    shelf.put(bytes([1] * 100), "2.png")
    assert shelf.has(first)  # it was put last before
    assert not shelf.has(other)


def test_names_cannot_be_guessed(shelf):
    path = shelf.put(bytes(100), "0.png")
    _, root, key, name = path.split("/")
    assert (root, name) == ("pictures", "0.png")
    assert len(key) == 32  # 128 bits
    assert Shelf(250).put(bytes(100), "0.png") != path  # not from what the picture holds
    assert shelf.get("/pictures/unknown/0.png") is None


def test_what_is_dropped_is_gone(shelf):
    path = shelf.put(bytes(100), "0.png")
    shelf.drop(path)
    shelf.drop(path)
    assert not shelf.has(path)
    assert shelf.size == 0
