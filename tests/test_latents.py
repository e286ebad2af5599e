import io
import json
import multiprocessing
import pickle
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.utils.data import DataLoader, Dataset

from legodiff.data import Unreadable
from legodiff.data.latents import open_latents
from legodiff.data.manifest import Manifest, read_manifest, shard_path, write_manifest
from legodiff.vae import VaeSpec

ONE_LINE = r"^[^\n]*{}[^\n]*$"
VAE = VaeSpec(4, 8, 0.5, 0.1, "some/vae", "ab" * 32)


def make_shards(folder, count=11, shard_size=4, classes=3, seed=0):
    """A folder of random moments; returns them, float16 (count, 8, 2, 3)."""
    rng = np.random.default_rng(seed)
    moments = rng.normal(size=(count, 8, 2, 3)).astype(np.float16)
    moments[:, 4:] = np.abs(moments[:, 4:]) + 0.1
    labels = np.arange(count) % max(1, classes)
    names = tuple(f"class {n}" for n in range(classes))
    manifest = Manifest(VAE, (16, 24), count, shard_size, names)
    write_manifest(folder, manifest)
    for shard in range(manifest.shards):
        rows = manifest.rows(shard)
        part = slice(rows.start, rows.stop)
        save_file(
            {"moments": torch.tensor(moments[part]), "labels": torch.tensor(labels[part])},
            shard_path(folder, shard),
        )
    return moments


def npy(array):
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def make_zip(path, latents, labels, extra=()):
    """The authors' format: scaled latents, one file each, and dataset.json."""
    names = [f"{n // 4:05d}/img{n:08d}.npy" for n in range(len(latents))]
    listed = None if labels is None else [[n, c] for n, c in zip(names, labels, strict=True)]
    files = {name: npy(latent) for name, latent in zip(names, latents, strict=True)}
    files |= {"dataset.json": json.dumps({"labels": listed}).encode(), **dict(extra)}
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in reversed(files.items()):  # the order in the file means nothing
                archive.writestr(name, data)
    else:
        for name, data in files.items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(data)
    return names


class Drawn(Dataset):
    """As training reads: the draw is a function of the index."""

    def __init__(self, latents):
        self.latents = latents

    def __len__(self):
        return len(self.latents)

    def __getitem__(self, index):
        return self.latents.read(index, np.random.default_rng(index))


def test_what_is_read_is_what_was_written(tmp_path):
    moments = make_shards(tmp_path)
    latents = open_latents(tmp_path)
    assert (len(latents), latents.channels, latents.size) == (11, 4, (2, 3))
    assert latents.class_names == ("class 0", "class 1", "class 2")
    assert latents.identity == VAE
    for index in (10, 0, 3, 4, 7, 8):
        latent, label = latents.read(index)
        assert latent.dtype == np.float32
        assert np.array_equal(latent, moments[index, :4].astype(np.float32))
        assert label == index % 3
    for index in (-1, 11):
        with pytest.raises(IndexError):
            latents.read(index)


def test_draws_are_the_posterior_and_a_function_of_the_generator(tmp_path):
    moments = make_shards(tmp_path).astype(np.float64)
    latents = open_latents(tmp_path)
    rng = np.random.default_rng(3)
    drawn = np.stack([latents.read(5, rng)[0] for _ in range(4000)])
    assert drawn.dtype == np.float32
    mean, std = moments[5, :4], moments[5, 4:]
    assert np.abs((drawn.mean(axis=0) - mean) / std).max() < 5 / 4000**0.5
    assert np.abs(drawn.std(axis=0) / std - 1).max() < 5 / 8000**0.5
    again = latents.read(5, np.random.default_rng(3))[0]
    assert np.array_equal(again, drawn[0])
    assert not np.array_equal(drawn[0], drawn[1])
    assert np.array_equal(latents.read(5)[0], latents.read(5, None)[0])


def test_statistics_are_those_of_all_draws(tmp_path):
    moments = make_shards(tmp_path).astype(np.float64)
    means, variances = moments[:, :4], moments[:, 4:] ** 2
    mean, std = open_latents(tmp_path).statistics()
    assert mean == pytest.approx(means.mean(axis=(0, 2, 3)), rel=1e-6)
    expected = np.sqrt(means.var(axis=(0, 2, 3)) + variances.mean(axis=(0, 2, 3)))
    assert std == pytest.approx(expected, rel=1e-6)


def test_statistics_of_many_latents_are_of_a_spread_sample(tmp_path, monkeypatch):
    moments = make_shards(tmp_path).astype(np.float64)
    monkeypatch.setattr("legodiff.data.latents.SAMPLE", 3)
    mean, _ = open_latents(tmp_path).statistics()
    assert mean == pytest.approx(moments[[0, 5, 10], :4].mean(axis=(0, 2, 3)), rel=1e-6)


@pytest.mark.parametrize("context", ["fork", "spawn"])
@pytest.mark.parametrize("kind", ["shards", "zip"])
def test_reading_processes_see_the_same(tmp_path, kind, context):
    path = tmp_path / "latents.zip" if kind == "zip" else tmp_path
    if kind == "zip":
        make_zip(path, np.random.default_rng(0).normal(size=(40, 4, 8, 8)).astype("f4"), range(40))
    else:
        make_shards(path, 40)
    data = Drawn(open_latents(path))
    here = [data[index] for index in range(40)]  # files are open when the workers begin
    assert pickle.loads(pickle.dumps(data.latents))._moments is not data.latents._moments
    loader = DataLoader(
        data, 5, num_workers=2, multiprocessing_context=multiprocessing.get_context(context)
    )
    there = [item for images, labels in loader for item in zip(images, labels, strict=True)]
    for (latent, label), (image, index) in zip(here, there, strict=True):
        assert np.array_equal(latent, image.numpy())
        assert label == index


def test_shards_that_are_missing_short_or_broken_are_not_finished(tmp_path):
    make_shards(tmp_path)
    path = shard_path(tmp_path, 1)
    whole = path.read_bytes()
    line = ONE_LINE.format("encoding is not finished: 2 of 3 shards; run the same command again")
    cases = {
        "short": whole[:-3],
        "garbage": b"garbage",
        "empty": b"",
        "pickle": pickle.dumps([1]),
        "of another shape": shard_path(tmp_path, 2).read_bytes(),
    }
    for what, data in cases.items():
        path.write_bytes(data)
        with pytest.raises(ValueError, match=line):
            pytest.fail(f"{what}: {open_latents(tmp_path)}")
    labels = torch.tensor([1, 2, 0, 1])
    for moments in (
        torch.zeros(4, 8, 2, 3),
        torch.zeros(4, 8, 3, 2).half(),
    ):  # not float16; not 2x3
        save_file({"moments": moments, "labels": labels}, path)
        with pytest.raises(ValueError, match=line):
            open_latents(tmp_path)
    path.unlink()
    with pytest.raises(ValueError, match=line):
        open_latents(tmp_path)


def test_labels_beyond_the_classes_are_not_read(tmp_path):
    make_shards(tmp_path, classes=3)
    write_manifest(tmp_path, Manifest(VAE, (16, 24), 11, 4, ("one", "two")))
    with pytest.raises(ValueError, match="not finished: 0 of 3"):
        open_latents(tmp_path)


def test_a_shard_that_goes_away_is_named(tmp_path):
    make_shards(tmp_path)
    latents = open_latents(tmp_path)
    shard_path(tmp_path, 2).unlink()
    latents.read(0)
    with pytest.raises(ValueError, match=ONE_LINE.format("00002.safetensors is gone or broken")):
        latents.read(10)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "legodiff-latents-9"}, "format 'legodiff-latents-9'; this version reads"),
        ({"colour": 1}, "unknown key 'colour'"),
        ({"count": 0}, "count cannot be 0"),
        ({"count": True}, "count cannot be True"),
        ({"shard_size": 2.5}, "shard_size cannot be 2.5"),
        ({"image_size": [16]}, "image_size cannot be"),
        ({"image_size": [16, 20]}, "both sides must be divisible by 8"),
        ({"class_names": [1]}, "class_names cannot be"),
        ({"mean": [0.0]}, "mean cannot be"),
        ({"std": [1.0, 1.0, 1.0, 1e400]}, "std cannot be"),
        ({"vae": None}, "vae: None is not a set"),
        ({"vae": {"channels": 4}}, "missing 1 required"),
        ({"vae": {"channels": 4, "downsampling": 8, "scale": -1}}, "scale is -1"),
        ({"vae": {"channels": 4, "downsampling": 0}}, "downsampling is 0"),
        ({"vae": {"channels": 4, "downsampling": 8, "name": "x"}}, "sha256 is None"),
        ({"vae": {"channels": 4, "downsampling": 8, "sha256": "x"}}, "name is None"),
    ],
)
def test_a_manifest_that_cannot_be_is_one_line(tmp_path, change, message):
    make_shards(tmp_path)
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=ONE_LINE.format(rf"manifest\.json.*{message}")):
        open_latents(tmp_path)


def test_a_manifest_survives_json(tmp_path):
    manifest = Manifest(VAE, (16, 24), 11, 4, ("ä",), "centre", "/data", (0.0,) * 4, (1.0,) * 4)
    write_manifest(tmp_path, manifest)
    assert read_manifest(tmp_path) == manifest
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(ValueError, match=ONE_LINE.format("is not JSON")):
        read_manifest(tmp_path)


@pytest.mark.parametrize("name", ["latents.zip", "folder"])
def test_the_authors_latents_are_scaled_back(tmp_path, name):
    raw = np.random.default_rng(0).normal(size=(6, 4, 8, 8)).astype(np.float32)
    labels = [5, 0, 2, 2, 1, 0]
    make_zip(tmp_path / name, raw * np.float32(0.18215), labels)
    latents = open_latents(tmp_path / name)
    assert latents.vae == VaeSpec(4, 8, 0.18215)
    assert latents.identity is None
    assert (latents.channels, latents.size, len(latents)) == (4, (8, 8), 6)
    assert latents.class_names == ("0", "1", "2", "3", "4", "5")
    rng = np.random.default_rng(0)
    for index, label in enumerate(labels):
        latent, found = latents.read(index, rng)
        assert latent.dtype == np.float32
        assert np.allclose(latent, raw[index], rtol=1e-6)
        assert found == label
    mean, std = latents.statistics()
    assert mean == pytest.approx(raw.mean(axis=(0, 2, 3)), abs=1e-5)
    assert std == pytest.approx(raw.std(axis=(0, 2, 3)), rel=1e-5)


def test_the_authors_latents_without_labels(tmp_path):
    make_zip(tmp_path / "a.zip", np.ones((2, 4, 8, 8), np.float32), None)
    latents = open_latents(tmp_path / "a.zip")
    assert latents.class_names == ()
    assert latents.read(1)[1] == 0


def header(shape, dtype="<f4"):
    """A .npy file that claims a shape and holds nothing."""
    stream = io.BytesIO()
    values = {"descr": dtype, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(stream, values)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "magic"),
        (b"not an array", "magic"),
        (npy(np.ones((4, 8, 8), np.float32))[:-1], "cut short"),
        (header((4, 1 << 20, 1 << 20)), "cut short"),
        (header((-4, -8, 8)), r"it holds float32 \(-4, -8, 8\)"),
        (npy(np.ones((4, 8, 8))), "float64"),
        (npy(np.ones((4, 4, 4), np.float32)), r"shape is \(4, 4, 4\), not \(4, 8, 8\)"),
        (npy(np.full((4, 8, 8), np.nan, np.float32)), "not finite"),
        (npy(np.array([{"a": 1}], dtype=object)), "object"),
        (pickle.dumps(np.ones((4, 8, 8), np.float32)), "magic"),
    ],
)
@pytest.mark.parametrize("name", ["latents.zip", "folder"])
def test_a_member_that_cannot_be_read_is_named(tmp_path, name, data, reason):
    latents = np.ones((3, 4, 8, 8), np.float32)
    extra = {"00000/img00000001.npy": data}
    make_zip(tmp_path / name, latents, [0, 1, 2], extra)
    opened = open_latents(tmp_path / name)
    opened.read(0)
    with pytest.raises(Unreadable, match=reason) as caught:
        opened.read(1)
    assert caught.value.name.endswith("00000/img00000001.npy")
    assert "\n" not in str(caught.value)
    opened.statistics()


def test_a_member_larger_than_a_latent_is_not_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr("legodiff.data.archives.LIMIT", 5000)
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("0.npy", npy(np.ones((4, 8, 8), np.float32)))
        archive.writestr("1.npy", npy(np.ones((4, 80, 80), np.float32)))
    latents = open_latents(tmp_path / "a.zip")
    with pytest.raises(Unreadable, match=r"1\.npy: declares 102,528 bytes; at most 5,000"):
        latents.read(1)


def test_an_unreadable_first_member_does_not_hide_the_rest(tmp_path):
    extra = {"00000/img00000000.npy": b""}
    make_zip(tmp_path / "a.zip", np.ones((3, 4, 8, 8), np.float32), [0, 1, 2], extra)
    latents = open_latents(tmp_path / "a.zip")
    assert latents.size == (8, 8)
    latents.read(1)
    make_zip(tmp_path / "b.zip", np.ones((1, 4, 8, 8), np.float32), [0], extra)
    with pytest.raises(ValueError, match=ONE_LINE.format("not one latent can be read")):
        open_latents(tmp_path / "b.zip")


@pytest.mark.parametrize(
    "listed", ["{", "[]", '{"labels": [["00000/img00000000.npy", 0.5]]}', '{"labels": [[1]]}']
)
def test_labels_that_cannot_be_are_one_line(tmp_path, listed):
    latents = np.ones((1, 4, 8, 8), np.float32)
    make_zip(tmp_path / "a.zip", latents, [0], {"dataset.json": listed.encode()})
    if listed == "[]":
        assert open_latents(tmp_path / "a.zip").class_names == ()
        return
    with pytest.raises(ValueError, match=ONE_LINE.format(r"dataset\.json")):
        open_latents(tmp_path / "a.zip")


def test_a_latent_without_a_label_is_named(tmp_path):
    extra = {"00009/x.npy": npy(np.ones((4, 8, 8), np.float32))}
    make_zip(tmp_path / "a.zip", np.ones((1, 4, 8, 8), np.float32), [0], extra)
    with pytest.raises(ValueError, match=ONE_LINE.format(r"00009/x\.npy")):
        open_latents(tmp_path / "a.zip")


def test_what_holds_no_latents_is_one_line(tmp_path):
    (tmp_path / "a.txt").write_text("hello")
    for path in (tmp_path, tmp_path / "a.txt", tmp_path / "missing"):
        with pytest.raises(ValueError, match=ONE_LINE.format("latents")):
            open_latents(path)
