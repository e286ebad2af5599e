import io
import os
import pickle
import struct
import tarfile
from contextlib import suppress

import numpy as np
import pytest

from legodiff.data import open_data
from legodiff.data.pickled import UINT8_ARRAYS, Uint8Array
from legodiff.pickles import load

RNG = np.random.default_rng(3)
NAMES = [f"class {i}" for i in range(10)]


def python_2_string(raw):
    return b"T" + struct.pack("<I", len(raw)) + raw


def python_2_array(pixels):
    """What Python 2 wrote for a uint8 array: protocol 2, as in CIFAR's own files."""
    shape = b"".join(b"J" + struct.pack("<i", n) for n in pixels.shape)
    return (
        b"cnumpy.core.multiarray\n_reconstruct\nq\x01cnumpy\nndarray\nq\x02K\x00\x85U\x01b\x87Rq\x03"
        b"(K\x01" + shape + b"\x86cnumpy\ndtype\nq\x04U\x02u1K\x00K\x01\x87Rq\x05(K\x03U\x01|NNN"
        b"J\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89" + python_2_string(pixels.tobytes()) + b"tb"
    )


def python_2_batch(pixels, labels, key=b"labels"):
    ints = b"".join(b"K" + bytes([label]) for label in labels)
    return (
        b"\x80\x02}q\x00(U\x04data" + python_2_array(pixels)
        + python_2_string(key) + b"]q\x06(" + ints + b"eu."
    )  # fmt: skip


def python_2_meta(names, key=b"label_names"):
    strings = b"".join(python_2_string(name.encode()) for name in names)
    return b"\x80\x02}q\x00" + python_2_string(key) + b"](" + strings + b"es."


def cifar_10(pixels, labels):
    """Five batches of the images, as files by name."""
    parts = zip(np.split(pixels, 5), np.split(labels, 5), strict=True)
    files = {f"data_batch_{i}": python_2_batch(*part) for i, part in enumerate(parts, 1)}
    return {**files, "batches.meta": python_2_meta(NAMES), "test_batch": b"-", "readme.html": b"-"}


def folder_of(root, name, files):
    (root / name).mkdir(parents=True)
    for file, content in files.items():
        (root / name / file).write_bytes(content)
    return root / name


def archive_of(path, name, files):
    with tarfile.open(path, "w:gz") as tar:
        for file, content in files.items():
            member = tarfile.TarInfo(f"{name}/{file}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


@pytest.fixture
def cifar():
    pixels = RNG.integers(0, 256, (20, 3072), dtype=np.uint8)
    return pixels, RNG.integers(0, 10, 20), "cifar-10-batches-py"


@pytest.mark.parametrize("kind", ["folder", "folder above", "archive", "renamed archive"])
def test_cifar_10(tmp_path, cifar, kind):
    pixels, labels, name = cifar
    files = cifar_10(pixels, labels)
    if kind.startswith("folder"):
        path = folder_of(tmp_path, name, files)
        path = path.parent if kind == "folder above" else path.rename(tmp_path / "renamed")
    else:
        file = "cifar-10-python.tar.gz" if kind == "archive" else "download"
        path = archive_of(tmp_path / file, name, files)
    data = open_data(str(path), 32)
    assert data.class_names == tuple(NAMES)
    assert data.channels == 3
    read = [data.read(i) for i in range(len(data))]
    assert np.array_equal(np.stack([image for image, _ in read]), pixels.reshape(-1, 3, 32, 32))
    assert [label for _, label in read] == labels.tolist()


def test_cifar_100(tmp_path):
    pixels, labels = RNG.integers(0, 256, (4, 3072), dtype=np.uint8), np.array([99, 0, 5, 1])
    names = [f"fine {i}" for i in range(100)]
    files = {
        "train": python_2_batch(pixels, labels, b"fine_labels"),
        "meta": python_2_meta(names, b"fine_label_names"),
    }
    data = open_data(str(archive_of(tmp_path / "x.tar.gz", "cifar-100-python", files)), 32)
    assert data.class_names == tuple(names)
    assert np.array_equal(data.read(3)[0], pixels[3].reshape(3, 32, 32))
    assert [data.read(i)[1] for i in range(4)] == [99, 0, 5, 1]


def test_what_is_not_cifars_is_one_line(tmp_path, cifar):
    pixels, labels, name = cifar
    good = cifar_10(pixels, labels)
    wrong = {
        "data_batch_3": [
            python_2_batch(pixels[:, :100], labels),
            python_2_batch(pixels, labels[:-1]),
            python_2_batch(pixels, labels + 10),
            pickle.dumps([1, 2]),
            b"",
        ],
        "batches.meta": [pickle.dumps({"label_names": 3}), pickle.dumps({})],
    }
    for file, contents in wrong.items():
        for number, content in enumerate(contents):
            path = archive_of(tmp_path / f"{file}{number}", name, {**good, file: content})
            with pytest.raises(ValueError, match=rf"^[^\n]*{file}[^\n]*$"):
                open_data(str(path), 32)
    missing = {file: content for file, content in good.items() if file != "data_batch_3"}
    for path in (archive_of(tmp_path / "x", name, missing), folder_of(tmp_path, "y", missing)):
        with pytest.raises(ValueError, match=r"has no data_batch_3; fetch the archive again$"):
            open_data(str(path), 32)


def test_a_cut_archive_is_one_line(tmp_path, cifar):
    pixels, labels, name = cifar
    path = archive_of(tmp_path / "x.tar.gz", name, cifar_10(pixels, labels))
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(ValueError, match=r"^[^\n]*x\.tar\.gz is not a whole archive[^\n]*$"):
        open_data(str(path), 32)


PLAIN = [
    *(None, True, False, 0, 1, -1, 255, 256, 70_000, -(2**31), 2**40, -(2**90), 0.1, "", "x" * 300),
    *("ö€", b"", b"\x00\xff" * 300, (), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4), [], [1, [2, [3]]]),
    *({}, {"a": 1}, {1: {b"b": (2, [])}, "c": None}, [1] * 3000, dict.fromkeys(range(3000))),
]


@pytest.mark.parametrize("protocol", range(6))
def test_plain_data_are_read_as_they_were_written(protocol):
    for value in [*PLAIN, PLAIN]:
        found = load(io.BytesIO(pickle.dumps(value, protocol)), UINT8_ARRAYS)
        assert found == value
        assert type(found) is type(value)
    shared = [1]
    found = load(io.BytesIO(pickle.dumps([shared, shared], protocol)), {})
    assert found[0] is found[1]


@pytest.mark.parametrize("protocol", range(5))
def test_arrays_of_bytes_are_read(protocol):
    for array in (
        RNG.integers(0, 256, (3, 4, 5), dtype=np.uint8),
        np.asfortranarray(RNG.integers(0, 256, (6, 7), dtype=np.uint8)),
        np.zeros(0, np.uint8),
    ):
        found = load(io.BytesIO(pickle.dumps({"a": array}, protocol)), UINT8_ARRAYS)["a"]
        assert isinstance(found, Uint8Array)
        assert np.array_equal(found.array, array)


class Calls:
    """Pickles to a call of a function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def hostile(marker):
    """Pickles that would make the file ``marker`` if Python's own reader opened them."""
    touch = f"touch {marker}"
    system = Calls(os.system, touch)
    yield pickle.dumps(system)
    yield pickle.dumps({"data": [1, (system,)]}, 0)
    yield pickle.dumps({"data": system, "labels": [0]}, 2)
    yield pickle.dumps(Calls(eval, f"__import__('os').system({touch!r})"), 4)
    yield pickle.dumps(Calls(exec, f"open({str(marker)!r}, 'w')"), 4)
    yield pickle.dumps(Calls(__import__("_codecs").encode, Calls(os.system, touch), "latin1"), 2)
    array = pickle.dumps(np.zeros(3, np.uint8), 2)
    call = b"cos\nsystem\nX" + struct.pack("<I", len(touch)) + touch.encode() + b"\x85R"
    yield array.replace(b"K\x03\x85", call + b"0K\x03\x85", 1)  # within an array, then dropped
    yield b"(X" + struct.pack("<I", len(touch)) + touch.encode() + b"ios\nsystem\n."  # INST
    yield b"(cos\nsystem\nX" + struct.pack("<I", len(touch)) + touch.encode() + b"o."  # OBJ
    yield (
        b"cos\nsystem\nX" + struct.pack("<I", len(touch)) + touch.encode() + b"\x85\x81."
    )  # NEWOBJ


def test_hostile_pickles_are_refused_and_do_not_run(tmp_path, cifar):
    marker = tmp_path / "run"
    pickles = list(hostile(marker))
    for content in pickles[:-4]:  # they do work elsewhere
        with suppress(TypeError):  # of what comes after
            pickle.loads(content)
        assert marker.exists()
        marker.unlink()
    pixels, labels, name = cifar
    for number, content in enumerate(pickles):
        with pytest.raises(ValueError, match=r"^pickle refused: [^\n]*$"):
            load(io.BytesIO(content), UINT8_ARRAYS)
        files = {**cifar_10(pixels, labels), "data_batch_2": content}
        path = archive_of(tmp_path / f"{number}.tar.gz", name, files)
        with pytest.raises(ValueError, match=r"^[^\n]*data_batch_2: pickle refused: [^\n]*$"):
            open_data(str(path), 32)
        assert not marker.exists()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"cbuiltins\neval\n.", r"asks for builtins\.eval"),
        (b"\x8c\x02os\x8c\x06system\x93.", r"asks for os\.system"),
        (b"cnumpy.core.multiarray\n_reconstruct\n(NNNtR.", "unknown kind"),
        (b"cnumpy\nndarray\n)R.", "made in an unknown way"),
        (b"cnumpy\ndtype\nX\x01\0\0\0O\x85R.", "numbers of type 'O'"),
        (b"c_codecs\nencode\nX\1\0\0\0aX\3\0\0\0hex\x86R.", "unknown encoding"),
        (b"cnumpy\ndtype\nN}b.", "damaged|sets the state"),
        (b"cnumpy\ndtype\n}b.", "sets the state of Name"),
        (b"]}b.", "sets the state of list"),
        (b"N)R.", "calls NoneType"),
        (b"\x82\x01.", "EXT1"),
        (b"Pid\n.", "PERSID"),
        (b"NQ.", "refers to something outside"),
        (b"\x97.", "NEXT_BUFFER"),
        (b"](K\1h\x63e.", "damaged"),
        (b"N", "damaged|no end"),
        (b"", "damaged|no end"),
        (b".", "damaged"),
        (b"(.", "damaged|plain"),
        (b"c__builtin__\nbytes\nK\x09\x85R.", "damaged"),
        (b"NN.", "damaged"),
        (b"}]Ns.", "keys must be"),
        (b"}))s.", "keys must be"),
        (b"\x8e\xff\xff\xff\xff\xff\xff\xff\x7fabc.", "damaged"),
        (b"r\xff\xff\xff\xff.", "damaged"),
    ],
)
def test_what_is_not_plain_is_refused_with_a_reason(content, reason):
    with pytest.raises(ValueError, match=rf"^pickle refused: [^\n]*({reason})[^\n]*$"):
        load(io.BytesIO(content), UINT8_ARRAYS)


def test_memory_is_bounded():
    with pytest.raises(ValueError, match="more than 100 bytes"):
        load(io.BytesIO(pickle.dumps("x" * 101)), {}, limit=100)
    assert load(io.BytesIO(b"Nr\xfe\xff\xff\xff."), {}) is None  # a memo of 2**32 - 2 places
    state = pickle.dumps(np.zeros((2, 3), np.uint8), 2).replace(
        b"K\x02K\x03\x86", b"K\xffK\xff\x86"
    )
    with pytest.raises(ValueError, match="damaged or not plain data"):
        load(io.BytesIO(state), UINT8_ARRAYS)


@pytest.mark.parametrize("dtype", [np.int64, np.float32, object, "S3"])
def test_other_arrays_are_refused(dtype):
    array = np.zeros(3, dtype)
    with pytest.raises(ValueError, match="only bytes"):
        load(io.BytesIO(pickle.dumps(array, 2)), UINT8_ARRAYS)
