import numpy as np
import pytest

from legodiff.arrays import Rows, npz_names, read_npz

RNG = np.random.default_rng(0)
ARRAYS = {
    "arr_0": RNG.integers(0, 256, (7, 4, 5, 3), np.uint8),
    "turned": np.asfortranarray(RNG.normal(size=(3, 4))),
    "big": RNG.normal(size=(2, 2)).astype(">f4"),
    "one": np.float64(3.5),
    "none": np.zeros((0, 3), np.int64),
    "truth": np.array([True, False]),
}


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_arrays_come_back(save, tmp_path):
    save(tmp_path / "a.npz", **ARRAYS)
    found = read_npz(tmp_path / "a.npz")
    assert list(found) == npz_names(tmp_path / "a.npz") == list(ARRAYS)
    for name, array in ARRAYS.items():
        assert np.array_equal(found[name], array)
        assert found[name].dtype == np.asarray(array).dtype.newbyteorder("=")
    assert list(read_npz(tmp_path / "a.npz", ["one", "more"])) == ["one"]


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_rows_are_read_in_any_order(save, tmp_path):
    save(tmp_path / "a.npz", **ARRAYS)
    rows = Rows(tmp_path / "a.npz", "arr_0")
    assert len(rows) == 7
    for row in (3, 4, 0, 6, 6, 1):
        assert np.array_equal(rows[row], ARRAYS["arr_0"][row])
    assert np.array_equal(np.stack(list(rows)), ARRAYS["arr_0"])


def test_what_cannot_be_is_one_line(tmp_path):
    np.savez(tmp_path / "a.npz", **ARRAYS)
    with pytest.raises(ValueError, match=r"a\.npz holds no arr_1"):
        Rows(tmp_path / "a.npz", "arr_1")
    with pytest.raises(ValueError, match="turned is not stored row by row"):
        Rows(tmp_path / "a.npz", "turned")
    np.savez(tmp_path / "b.npz", a=np.array([{}], object))
    with pytest.raises(ValueError, match="no array of plain numbers"):
        read_npz(tmp_path / "b.npz")
    np.savez_compressed(tmp_path / "c.npz", a=np.zeros(10**7))
    with pytest.raises(ValueError, match="more than 64 times its size"):
        read_npz(tmp_path / "c.npz")
    whole = (tmp_path / "a.npz").read_bytes()
    (tmp_path / "d.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"^NPZ refused: [^\n]*$"):
        read_npz(tmp_path / "d.npz")
    np.savez_compressed(tmp_path / "e.npz", a=RNG.normal(size=1000))
    packed = bytearray((tmp_path / "e.npz").read_bytes())
    packed[1000:1100] = bytes(100)
    (tmp_path / "e.npz").write_bytes(packed)
    with pytest.raises(ValueError, match=r"^NPZ refused: [^\n]*$"):
        read_npz(tmp_path / "e.npz")
    with pytest.raises(ValueError, match=r"^NPZ refused: [^\n]*$"):
        list(Rows(tmp_path / "e.npz", "a"))
