import io
import json
import os
import pickle
import tarfile
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from legodiff.data import Unreadable, open_data, tars
from legodiff.data.detect import open_source

RNG = np.random.default_rng(2)
IMAGES = RNG.integers(0, 256, (40, 4, 4, 3), dtype=np.uint8)


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("LEGODIFF_CACHE", str(folder))
    return folder


@pytest.fixture
def scans(monkeypatch):
    """Paths of the shards that are scanned."""
    paths, scan = [], tars.scan
    monkeypatch.setattr(tars, "scan", lambda path: paths.append(path) or scan(path))
    return paths


def png(number):
    out = io.BytesIO()
    Image.fromarray(IMAGES[number]).save(out, "PNG")
    return out.getvalue()


def tarred(path, files, mode="w", **options):
    """A tar of files by name; a number stands for the PNG of that image."""
    with tarfile.open(path, mode, **options) as tar:
        for name, content in files.items():
            content = png(content) if isinstance(content, int) else content
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return str(path)


def holds(data, numbers, labels, names):
    assert data.class_names == names
    assert len(data) == len(numbers)
    for i, (number, label) in enumerate(zip(numbers, labels, strict=True)):
        image, found = data.read(i)
        assert np.array_equal(image, IMAGES[number].transpose(2, 0, 1))
        assert found == label


@pytest.mark.parametrize("flavour", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_labels_in_cls_by_number(tmp_path, flavour):
    files = {"./a/0001.png": 0, "./a/0001.cls": b"2\n", "./a/0002.cls": b"0", "./a/0002.PNG": 1}
    path = tarred(tmp_path / "x.tar", files, format=flavour)
    holds(open_data(path, 4), [0, 1], [2, 0], ("0", "1", "2"))


def test_long_and_foreign_names(tmp_path):
    long = "ö" * 90 + "/" + "x" * 200
    path = tarred(
        tmp_path / "x.tar",
        {f"{long}.png": 0, f"{long}.cls": b"katze", "b.png": 1, "b.cls": b"hund"},
    )
    source = open_source(path)
    assert source.names[0] == f"{long}.png"
    holds(open_data(path, 4), [0, 1], [1, 0], ("hund", "katze"))


def test_labels_in_json(tmp_path):
    def sample(label):
        return json.dumps({"label": label, "text": "…"}).encode()

    files = {"1.png": 0, "1.json": sample("dog"), "2.json": sample("cat"), "2.png": 1}
    holds(open_data(tarred(tmp_path / "x.tar", files), 4), [0, 1], [1, 0], ("cat", "dog"))
    files = {"1.json": sample(1), "1.png": 0, "1.cls": b"3"}
    holds(open_data(tarred(tmp_path / "y.tar", files), 4), [0], [3], ("0", "1", "2", "3"))
    backwards = dict(reversed(files.items()))
    holds(open_data(tarred(tmp_path / "z.tar", backwards), 4), [0], [3], ("0", "1", "2", "3"))


def test_json_without_label_means_none(tmp_path):
    files = {"1.png": 0, "1.json": b'{"text": "a"}', "2.png": 1, "2.json": b"[broken"}
    holds(open_data(tarred(tmp_path / "x.tar", files), 4), [0, 1], [0, 0], ())


def test_masks_beside_images_are_no_samples(tmp_path):
    files = {
        "1.mask.png": 1,
        "1.png": 0,
        "1.cls": b"0",
        "photo.2020.png": 2,
        "photo.2020.cls": b"1",
    }
    holds(open_data(tarred(tmp_path / "x.tar", files), 4), [0, 2], [0, 1], ("0", "1"))


def test_labels_of_names_with_several_dots_go_by_webdatasets_key(tmp_path):
    files = {"a/0.image.png": 0, "a/0.cls": b"1", "a/1.cls": b"0", "a/1.image.png": 1}
    holds(open_data(tarred(tmp_path / "x.tar", files), 4), [0, 1], [1, 0], ("0", "1"))
    named = {"0.image.png": 0, "0.json": b'{"label": "cat"}', "0.image.json": b'{"label": "dog"}'}
    holds(open_data(tarred(tmp_path / "y.tar", named), 4), [0], [0], ("dog",))  # the whole name


def test_labels_that_belong_to_no_image_are_refused(tmp_path, scans):
    path = tarred(tmp_path / "x.tar", {"0.png": 0, "0.label.cls": b"1", "1.label.cls": b"0"})
    for _ in range(2):  # and nothing is kept of it
        line = r"^[^\n]*x\.tar has labels, such as that of 0\.label, and none of them[^\n]*$"
        with pytest.raises(ValueError, match=line):
            open_data(path, 4)
    assert len(scans) == 2


def test_shards_in_a_folder_by_pattern_or_one(tmp_path):
    for shard in range(3):
        files = {f"{shard}.png": shard, f"{shard}.cls": str(shard).encode()}
        tarred(tmp_path / f"s-{shard:02}.tar", files)
    for path in (tmp_path, f"{tmp_path}/s-*.tar", f"{tmp_path}/s-{{00..02}}.tar"):
        holds(open_data(str(path), 4), [0, 1, 2], [0, 1, 2], ("0", "1", "2"))
    holds(open_data(f"{tmp_path}/s-{{02,00}}.tar", 4), [2, 0], [2, 0], ("0", "1", "2"))
    assert open_source(str(tmp_path)).name(1) == f"{tmp_path}/s-01.tar/1.png"


def test_a_tar_of_class_folders(tmp_path):
    path = tarred(tmp_path / "x.tar", {"top/dog/1.png": 0, "top/cat/1.png": 1})
    holds(open_data(path, 4), [0, 1], [1, 0], ("cat", "dog"))


def test_mixed_labels_are_refused(tmp_path):
    path = tarred(tmp_path / "x.tar", {"1.png": 0, "1.cls": b"1", "2.png": 1})
    with pytest.raises(ValueError, match=r"item 1 has no label, but others have one$"):
        open_data(path, 4)


def test_the_index_is_reused_and_refreshed(tmp_path, scans):
    for shard in range(2):
        tarred(tmp_path / f"{shard}.tar", {"a.png": shard, "a.cls": b"1"})
    holds(open_data(str(tmp_path), 4), [0, 1], [1, 1], ("0", "1"))
    holds(open_data(str(tmp_path), 4), [0, 1], [1, 1], ("0", "1"))
    assert scans == [f"{tmp_path}/0.tar", f"{tmp_path}/1.tar"]
    tarred(tmp_path / "1.tar", {"a.cls": b"0", "b.png": 3, "a.png": 2, "b.cls": b"1"})
    holds(open_data(str(tmp_path), 4), [0, 3, 2], [1, 1, 0], ("0", "1"))
    assert scans[2:] == [f"{tmp_path}/1.tar"]


def test_a_change_of_the_same_size_is_seen_by_its_time(tmp_path, scans):
    path = tarred(tmp_path / "x.tar", {"a.png": 0, "a.cls": b"1"})
    open_data(path, 4)
    before = os.stat(path)
    raw = (tmp_path / "x.tar").read_bytes()
    (tmp_path / "x.tar").write_bytes(raw.replace(b"1" + b"\0" * 500, b"0" + b"\0" * 500))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    assert os.stat(path).st_size == before.st_size
    holds(open_data(path, 4), [0], [0], ("0",))
    assert len(scans) == 2


def test_a_damaged_or_forbidden_cache_only_costs_time(tmp_path, cache, scans, monkeypatch):
    path = tarred(tmp_path / "x.tar", {"a.png": 0})
    open_data(path, 4)
    (index,) = (cache / "tar").iterdir()
    for damage in (b"", b"junk", index.read_bytes()[:-30]):
        index.write_bytes(damage)
        holds(open_data(path, 4), [0], [0], ())
    assert len(scans) == 4
    monkeypatch.setenv("LEGODIFF_CACHE", str(tmp_path / "x.tar"))
    holds(open_data(path, 4), [0], [0], ())


def test_the_index_holds_no_pickle(tmp_path, cache):
    open_data(tarred(tmp_path / "x.tar", {"a.png": 0, "a.cls": b"x"}), 4)
    (index,) = (cache / "tar").iterdir()
    with np.load(index, allow_pickle=False) as stored:
        assert all(stored[name].dtype != object for name in stored)


def test_a_shard_that_changes_while_it_is_open_is_not_misread(tmp_path):
    path = tarred(tmp_path / "x.tar", {"a.png": 0})
    data = open_data(path, 4, channels=3)
    tarred(path, {"longer-name.txt": b"-" * 3000, "a.png": 1})
    with pytest.raises(Unreadable, match="was changed after it was opened"):
        data.read(0)


@pytest.mark.parametrize("packing", ["gz", "bz2", "xz"])
@pytest.mark.parametrize("suffix", [".tar", ".tar.packed"])
def test_compressed_tars_say_what_to_do(tmp_path, packing, suffix):
    path = tarred(tmp_path / f"x{suffix}", {"a.png": 0}, f"w:{packing}")
    with pytest.raises(ValueError, match=r"^[^\n]* is compressed, so [^\n]*; unpack it [^\n]*$"):
        open_data(path, 4)


@pytest.mark.parametrize("keep", [100, 700, 1030])
def test_cut_tars_are_one_line(tmp_path, keep):
    path = tarred(tmp_path / "x.tar", {"a.png": 0, "b.png": 1})
    os.truncate(path, keep)
    with pytest.raises(ValueError, match=r"^[^\n]*x\.tar (is not a whole tar|holds no im)[^\n]*$"):
        open_data(path, 4)


def test_a_damaged_header_does_not_hide_the_rest(tmp_path):
    path = tarred(tmp_path / "x.tar", {"a.png": 0, "b.png": 1, "c.png": 2})
    raw = bytearray((tmp_path / "x.tar").read_bytes())
    raw[raw.index(b"b.png")] ^= 1
    (tmp_path / "x.tar").write_bytes(raw)
    with pytest.raises(
        ValueError, match=r"x\.tar is not a whole tar file \(no header at byte 1024\)"
    ):
        open_data(path, 4)


def test_unsafe_members_are_passed_over(tmp_path):
    path = tarred(tmp_path / "x.tar", {"../a.png": 0, "/b.png": 1, "c/../../d.png": 2, "ok.png": 3})
    with tarfile.open(path, "a") as tar:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE):
            member = tarfile.TarInfo(f"link{kind.decode()}.png")
            member.type, member.linkname = kind, "/etc/passwd"
            tar.addfile(member)
    holds(open_data(path, 4), [3], [0], ())


def test_huge_members_are_unreadable(tmp_path, monkeypatch):
    path = tarred(tmp_path / "x.tar", {"a.png": 0, "b.png": b"x" * 100_000})
    monkeypatch.setattr("legodiff.data.archives.LIMIT", 99_999)
    data = open_data(path, 4, channels=3)
    data.read(0)
    with pytest.raises(Unreadable, match=r"x\.tar/b\.png: declares 100,000 bytes; at most 99,999"):
        data.read(1)


class AsTorch(Dataset):
    def __init__(self, data):
        self.data = data

    def __len__(self):
        return len(self.data)

    def __getitem__(self, index):
        image, label = self.data.read(index)
        return torch.from_numpy(image), label


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_workers_read_at_random(tmp_path, kind, method):
    if kind == "tar":
        for shard in range(2):
            numbers = range(20 * shard, 20 * shard + 20)
            files = {f"{n:02}.png": n for n in numbers} | {
                f"{n:02}.cls": str(n).encode() for n in numbers
            }
            tarred(tmp_path / f"{shard}.tar", files)
        path = str(tmp_path)
    else:
        path = str(tmp_path / "x.zip")
        with zipfile.ZipFile(path, "w") as archive:
            for number in range(40):
                archive.writestr(f"{number:02}/a.png", png(number))
    data = open_data(path, 4)
    data.read(0)  # this process has the file open when it forks
    pickle.loads(pickle.dumps(data)).read(1)
    order = RNG.permutation(40).tolist() * 3
    loader = DataLoader(
        AsTorch(data), batch_size=8, sampler=order, num_workers=2, multiprocessing_context=method
    )
    images, labels = map(torch.cat, zip(*loader, strict=True))
    assert labels.tolist() == order
    assert np.array_equal(images.numpy(), IMAGES[order].transpose(0, 3, 1, 2))
