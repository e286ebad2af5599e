from legodiff.studio.shelf import Shelf


def test_the_oldest_make_room():
    shelf = Shelf(limit=250)
    paths = [shelf.put(bytes(100), f"{number}.png") for number in range(3)]
    assert [shelf.has(path) for path in paths] == [False, True, True]
    assert shelf.size == 200
    key = paths[2].split("/")[2]
    assert shelf.get(key) == (bytes(100), "2.png")
    assert paths[2] == f"/pictures/{key}/2.png"
    assert len(key) >= 20  # nobody guesses it
    large = shelf.put(bytes(1000), "large.png")  # one is always kept
    assert shelf.has(large)
    assert not shelf.has(paths[2])
    assert shelf.get("unknown") is None
