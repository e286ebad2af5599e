import numpy as np
import pytest

from legodiff.arrays import npz_names, read_npz, read_rows

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
    rows = list(read_rows(tmp_path / "a.npz", "arr_0", 3))
    assert [len(part) for part in rows] == [3, 3, 1]
    assert np.array_equal(np.concatenate(rows), ARRAYS["arr_0"])


def test_what_cannot_be_is_one_line(tmp_path):
    np.savez(tmp_path / "a.npz", **ARRAYS)
    with pytest.raises(ValueError, match=r"a\.npz holds no arr_1"):
        next(read_rows(tmp_path / "a.npz", "arr_1", 3))
    with pytest.raises(ValueError, match="turned is not stored row by row"):
        next(read_rows(tmp_path / "a.npz", "turned", 3))
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
