"""Each kind of collection gives exactly the pixels and labels that were put in."""

import errno
import io
import json
import os
import stat
import struct
import zipfile

import numpy as np
import pytest
from PIL import Image
from test_latents import make_zip

from legodiff.data import Unreadable, open_data
from legodiff.data.detect import expand, holds_latents, open_source

RNG = np.random.default_rng(1)
IMAGES = RNG.integers(0, 256, (6, 4, 4, 3), dtype=np.uint8)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("LEGODIFF_CACHE", str(tmp_path_factory.mktemp("cache")))


def png(number):
    out = io.BytesIO()
    Image.fromarray(IMAGES[number]).save(out, "PNG")
    return out.getvalue()


def write(root, files):
    """Files by name; a number stands for the PNG of that image."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(content) if isinstance(content, int) else content)
    return str(root)


def zipped(path, files, method=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in files.items():
            archive.writestr(name, png(content) if isinstance(content, int) else content)
    return str(path)


def holds(path, numbers, labels, names):
    data = open_data(path, 4)
    assert len(data) == len(numbers)
    assert data.class_names == names
    assert data.size == (4, 4)
    assert data.channels == 3
    for i, (number, label) in enumerate(zip(numbers, labels, strict=True)):
        image, found = data.read(i)
        assert np.array_equal(image, IMAGES[number].transpose(2, 0, 1))
        assert found == label


FLAT = {"b.png": 0, "a.PNG": 1, "readme.txt": b"-", ".hidden.png": b"-", "__MACOSX/b.png": b"-"}
CLASSES = {"dog/x/y/1.png": 0, "cat/2.png": 1, "cat/deep/1.png": 2, "docs/info.txt": b"-"}
CELEBA = {"img_align_celeba/2.png": 0, "img_align_celeba/1.png": 1, "Anno/list_attr.txt": b"-"}


@pytest.fixture(params=["folder", "zip", "stored zip", "wrapped zip"])
def pack(request, tmp_path):
    def packed(files):
        if request.param == "folder":
            return write(tmp_path / "data", files)
        if request.param == "wrapped zip":
            files = {f"./data/{name}": content for name, content in files.items()}
        method = zipfile.ZIP_STORED if "stored" in request.param else zipfile.ZIP_DEFLATED
        return zipped(tmp_path / "data.zip", files, method)

    return packed


def test_flat(pack):
    holds(pack(FLAT), [1, 0], [0, 0], ())


def test_classes(pack):
    holds(pack(CLASSES), [1, 2, 0], [0, 0, 1], ("cat", "dog"))


def test_celeba(pack):
    holds(pack(CELEBA), [1, 0], [0, 0], ())


@pytest.mark.parametrize(
    ("file", "rows"),
    [
        ("list_eval_partition.txt", "1.jpg 0\n2.jpg 1\n3.jpg 2\n"),
        ("list_eval_partition.csv", "image_id,partition\n1.jpg,0\n2.jpg,1\n3.jpg,2\n"),
    ],
)
def test_celeba_without_its_validation_and_test_parts(pack, tmp_path, file, rows):
    path = pack(CELEBA | {"img_align_celeba/3.png": 2})
    (tmp_path / file).write_text(rows)
    holds(path, [1], [0], ())
    assert open_source(path).kind.endswith(", CelebA's training part")
    (tmp_path / file).write_text(rows.replace("0", "2"))
    with pytest.raises(ValueError, match=f"{file} says that none of the images is for training"):
        open_source(path)


def test_dataset_json(pack):
    files = {"00000/a.png": 0, "00000/b.png": 1, "00001/c.png": 2}
    labels = [["00000/a.png", 3], ["00001\\c.png", 0], ["00000/b.png", 1], ["gone.png", 9]]
    files["dataset.json"] = json.dumps({"labels": labels}).encode()
    holds(pack(files), [0, 1, 2], [3, 1, 0], ("0", "1", "2", "3"))


@pytest.mark.parametrize("labels", [None, []])
def test_dataset_json_without_labels(pack, labels):
    files = {"00000/a.png": 0, "00001/b.png": 1}
    holds(
        pack({**files, "dataset.json": json.dumps({"labels": labels}).encode()}), [0, 1], [0, 0], ()
    )


def test_a_json_about_something_else_is_passed_over(pack):
    holds(
        pack({"b/a.png": 0, "c/b.png": 1, "dataset.json": b'{"x": 1}'}), [0, 1], [0, 1], ("b", "c")
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "is not"),
        (b'{"labels": 5}', "is not"),
        (b'{"labels": [["a.png"]]}', "is not"),
        (b'{"labels": [["a.png", 0]]}', r"no label for b\.png"),
        (b'{"labels": [["a.png", [0.5]], ["b.png", 1]]}', r"has label \[0\.5\]"),
        (b'{"labels": [["a.png", -1], ["b.png", 1]]}', "has label -1"),
        (b'{"labels": [["a.png", 1000000000000], ["b.png", 1]]}', "has label 1000000000000"),
    ],
)
def test_wrong_dataset_json_is_one_line(pack, content, message):
    with pytest.raises(ValueError, match=rf"^[^\n]*{message}[^\n]*$"):
        open_data(pack({"a.png": 0, "b.png": 1, "dataset.json": content}), 4)


def test_images_beside_class_folders_are_refused(pack):
    with pytest.raises(
        ValueError, match=r"beside its folders \((data/)?a\.png\) and in them \(cat/\)"
    ):
        open_data(pack({"a.png": 0, "cat/b.png": 1}), 4)


def test_nothing_there(pack, tmp_path):
    with pytest.raises(ValueError, match=r"^[^\n]* holds no images [^\n]*among 1 files[^\n]*$"):
        open_data(pack({"a.txt": b"-"}), 4)
    with pytest.raises(ValueError, match=r"^there is no /nowhere; give one of: images, class"):
        open_data("/nowhere", 4)
    (tmp_path / "data.bin").write_bytes(b"-")
    with pytest.raises(ValueError, match=r"data\.bin is none of: images, class folders"):
        open_data(str(tmp_path / "data.bin"), 4)


def test_corrupt_files_are_named(pack):
    data = open_data(pack({"a.png": 0, "b.png": png(1)[:60]}), 4)
    data.read(0)
    with pytest.raises(Unreadable, match=r"/b\.png: "):
        data.read(1)


def test_linked_folders_are_followed_but_not_forever(tmp_path):
    write(tmp_path / "far", {"1.png": 0})
    write(tmp_path / "data", {"cat/1.png": 1})
    (tmp_path / "data/dog").symlink_to(tmp_path / "far")
    (tmp_path / "data/cat/loop").symlink_to(tmp_path / "data")
    holds(str(tmp_path / "data"), [1, 0], [0, 1], ("cat", "dog"))


def test_folder_that_loses_a_file_names_it(tmp_path):
    data = open_data(write(tmp_path / "data", {"a.png": 0, "b.png": 1}), 4)
    (tmp_path / "data/b.png").unlink()
    with pytest.raises(Unreadable, match=r"b\.png: .*No such file"):
        data.read(1)


def test_unsafe_members_are_passed_over(tmp_path):
    path = tmp_path / "data.zip"
    zipped(path, {"../a.png": 0, "/b.png": 1, "x/../../c.png": 2, "..\\d.png": 3, "ok.png": 4})
    link = zipfile.ZipInfo("link.png")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(link, "/etc/passwd")
    holds(str(path), [4], [0], ())


def patched(path, name, field, value):
    """Changes a number in the central directory of a zip."""
    raw = bytearray(path.read_bytes())
    start = raw.rindex(name.encode()) - 46
    assert raw[start : start + 4] == b"PK\1\2"
    struct.pack_into("<I", raw, start + field, value)
    path.write_bytes(raw)


CRC, PACKED, SIZE = 16, 20, 24


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        (SIZE, 2**30, "declares 1,073,741,824 bytes"),
        (PACKED, 2**30, "declares 1,073,741,824 bytes"),
        (PACKED, 2**20, "ends before"),
        (SIZE, 10, "size or checksum"),
        (CRC, 7, "size or checksum"),
    ],
)
def test_lying_zip_members_are_unreadable(tmp_path, field, value, reason):
    path = tmp_path / "data.zip"
    zipped(path, {"a.png": 0, "b.png": 1})
    patched(path, "b.png", field, value)
    data = open_data(str(path), 4)
    data.read(0)
    with pytest.raises(Unreadable, match=rf"data\.zip/b\.png: .*{reason}"):
        data.read(1)


def test_zip_bombs_are_not_inflated(tmp_path):
    path = tmp_path / "data.zip"
    zipped(path, {"a.png": 0, "b.png": bytes(50_000_000)})
    patched(path, "b.png", SIZE, 1000)
    fetch = open_source(str(path)).fetch
    import tracemalloc

    tracemalloc.start()
    with pytest.raises(ValueError, match="size or checksum"):
        fetch(1)
    assert tracemalloc.get_traced_memory()[1] < 5_000_000
    tracemalloc.stop()


def test_encrypted_and_oddly_packed_members_say_so(tmp_path):
    path = tmp_path / "data.zip"
    zipped(path, {"a.png": 0, "b.png": 1}, zipfile.ZIP_BZIP2)
    with pytest.raises(Unreadable, match="zip with deflate"):
        open_data(str(path), 4, channels=3).read(0)


def test_a_cut_zip_is_one_line(tmp_path):
    path = tmp_path / "data.zip"
    zipped(path, {"a.png": 0})
    raw = bytearray(path.read_bytes())
    raw[raw.rindex(b"PK\1\2")] = 0
    path.write_bytes(raw)
    with pytest.raises(ValueError, match=r"^[^\n]*data\.zip is not a whole zip file[^\n]*$"):
        open_data(str(path), 4)


def test_latents_are_left_to_their_reader(tmp_path, monkeypatch):
    from legodiff.data import latents

    opened = []
    monkeypatch.setattr(latents, "open_latents", lambda path: opened.append(path) or "latents")
    ours = write(tmp_path / "ours", {"manifest.json": b'{"format": "legodiff-latents-1"}'})
    authors = zipped(tmp_path / "latents.zip", {"a.npy": b"-", "dataset.json": b"{}"})
    folder = write(tmp_path / "folder", {"00000/a.npy": b"-"})
    assert [open_data(path, 4) for path in (ours, authors, folder)] == ["latents"] * 3
    assert opened == [ours, authors, folder]
    holds(zipped(tmp_path / "both.zip", {"a.png": 0, "a.npy": b"-"}), [0], [0], ())


@pytest.mark.parametrize("format", ["legodiff-latents-1", "legodiff-latents-2", None])
def test_a_folder_is_of_latents_by_its_manifest_or_its_shards(tmp_path, format):
    shards = {} if format else {"latents-00000.safetensors": b"-"}
    manifest = json.dumps({"format": format}).encode() if format else b"{torn"
    assert holds_latents(write(tmp_path / "ours", {"manifest.json": manifest, **shards}))


@pytest.mark.parametrize("manifest", [b"{}", b'{"format": 3}', b"[1]", b"{torn", b"\xff"])
def test_images_beside_a_manifest_of_their_own_are_images(tmp_path, manifest):
    path = write(tmp_path / "data", {"manifest.json": manifest, "a.png": 0, "b.png": 1})
    assert not holds_latents(path)
    holds(path, [0, 1], [0, 0], ())


@pytest.mark.parametrize("wrong", [{"flip": True}, {"channels": 3}, {"alpha": "black"}])
def test_latents_take_no_settings_of_images(tmp_path, wrong):
    make_zip(tmp_path / "latents.zip", np.ones((2, 4, 4, 4), np.float32), None)
    path = str(tmp_path / "latents.zip")
    assert open_data(path, 4, None, False, "white").size == (4, 4)
    (name,) = wrong
    line = rf"^\S*latents\.zip holds latents, which take no {name}; leave that out, or [^\n]*$"
    with pytest.raises(ValueError, match=line):
        open_data(path, 4, **wrong)


def test_a_folder_without_the_right_to_read_it_is_one_line(tmp_path, monkeypatch):
    path = write(tmp_path / "data", {"cat/a.png": 0, "dog/b.png": 1})
    scan = os.scandir

    def refused(folder):
        if str(folder).endswith("dog"):
            raise PermissionError(errno.EACCES, "Permission denied", str(folder))
        return scan(folder)

    monkeypatch.setattr(os, "scandir", refused)
    with pytest.raises(
        ValueError, match=r"^[^\n]*/dog cannot be read \(Permission denied\); [^\n]*$"
    ):
        open_data(path, 4)


def test_what_a_disk_keeps_for_itself_is_passed_over(tmp_path):
    path = write(tmp_path / "data", {"a.png": 0, "lost+found/b.png": 1})
    holds(path, [0], [0], ())


def test_digits_by_name():
    data = open_data("digits", (16, 16))
    assert data.size == (16, 16)
    assert data.class_names == tuple("0123456789")
    for wrong in ({"size": (8, 16)}, {"channels": 3}, {"flip": True}):
        with pytest.raises(ValueError, match=r"^digits are square, grey and not mirrored"):
            open_data("digits", **{"size": 16, **wrong})


def test_patterns(tmp_path):
    for name in ("s-08.tar", "s-09.tar", "s-10.tar", "a.tar", "b.tar"):
        (tmp_path / name).write_bytes(b"")

    def names(pattern):
        return [path.rpartition("/")[2] for path in expand(f"{tmp_path}/{pattern}")]

    assert names("s-{08..10}.tar") == ["s-08.tar", "s-09.tar", "s-10.tar"]
    assert names("{b,a}.tar") == ["b.tar", "a.tar"]
    assert names("s-*.tar") == ["s-08.tar", "s-09.tar", "s-10.tar"]
    assert names("{s-{08,10},a}.tar") == ["s-08.tar", "a.tar", "s-10.tar", "a.tar"]
    for wrong, line in (
        ("s-{08..11}.tar", r"no file .*s-11\.tar"),
        ("z*.tar", r"no file .*z\*\.tar"),
        ("s-{10..08}.tar", "is not a range"),
        ("s-{0..99999999999}.tar", "is not a range"),
    ):
        with pytest.raises(ValueError, match=line):
            names(wrong)
