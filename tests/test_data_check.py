import io
import shlex
import zipfile

import numpy as np
import pytest
from PIL import Image

from legodiff.data import check as room
from legodiff.data import open_data
from legodiff.data.check import check
from legodiff.data.suggest import ROWS, suggest_noise, suggest_size

RNG = np.random.default_rng(5)


def save(path, pixels, kind="PNG", **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, kind, **options)


@pytest.fixture
def folder(tmp_path):
    """11 colour images of 20 x 16 and one of 40 x 32 in class a, one grey in b, two broken."""
    root = tmp_path / "my pictures"
    for i in range(11):
        save(root / f"a/{i:02}.png", RNG.integers(0, 256, (16, 20, 3), dtype=np.uint8))
    save(root / "a/large.png", RNG.integers(0, 256, (32, 40, 3), dtype=np.uint8))
    save(root / "b/grey.png", RNG.integers(0, 256, (16, 20), dtype=np.uint8))
    (root / "b/cut.png").write_bytes((root / "a/00.png").read_bytes()[:200])
    save(root / "b/float.tif", np.ones((4, 4), np.float32), "TIFF")
    return root


def cropped(root):
    """Independent: the 16 x 16 centre of what is 16 high; halved means for the large one."""
    out = []
    for path in sorted(root.rglob("*.png")):
        if path.name == "cut.png":
            continue
        pixels = np.asarray(Image.open(path).convert("RGB"))
        if path.name == "large.png":
            pixels = np.asarray(Image.open(path).resize((20, 16), Image.Resampling.BOX))
        out.append(pixels[:, 2:18])
    return np.stack(out) / 127.5 - 1


def test_what_is_there(folder):
    report = check(str(folder))
    assert report.kind == "folder"
    assert report.count == 15
    assert report.sizes == {(20, 16): 12, (40, 32): 1}
    assert (report.smallest, report.largest) == ((20, 16), (40, 32))
    assert report.modes == {"RGB": 12, "L": 1}
    assert report.classes == {"a": 12, "b": 3}
    assert list(report.unreadable) == [f"{folder}/b/cut.png", f"{folder}/b/float.tif"]
    assert "truncated" in report.unreadable[f"{folder}/b/cut.png"]
    assert "floating point" in report.unreadable[f"{folder}/b/float.tif"]
    assert report.warnings == (
        "13 images are likely to be memorised; from 5,000 on that is rarer",
        "1 images are grey and 12 in colour",
        "2 of 15 images cannot be read",
    )


def test_statistics_are_numpys(folder):
    found, pixels = check(str(folder)).statistics, cropped(folder)
    assert found.size == (16, 16)
    assert (found.images, found.sampled) == (13, False)
    np.testing.assert_allclose(found.mean, pixels.mean((0, 1, 2)), atol=1e-12)
    np.testing.assert_allclose(found.std, pixels.std((0, 1, 2)), atol=1e-12)
    centred = pixels - pixels.mean((0, 1, 2))
    assert found.deviation == pytest.approx(centred.std(), abs=1e-12)
    values = np.round((pixels + 1) * 127.5).astype(int)
    most = [np.bincount(values[..., c].ravel()).max() for c in range(3)]
    assert found.plain == pytest.approx(np.mean(most) / values[..., 0].size)


def test_the_deviation_is_the_codecs(folder):
    from legodiff.codec import PixelCodec

    pixels = np.round((cropped(folder) + 1) * 127.5).astype(np.uint8).transpose(0, 3, 1, 2)
    codec = PixelCodec.fit(pixels, 0.5)
    assert codec.scale == pytest.approx(0.5 / check(str(folder)).statistics.deviation, abs=1e-5)


def test_a_sample_is_evenly_spaced(folder, monkeypatch):
    monkeypatch.setattr(room, "SAMPLE", 4)
    found, pixels = check(str(folder), channels=1).statistics, cropped(folder)
    assert (found.images, found.sampled) == (4, True)  # 0, 4.67, 9.33 and 14, rounded
    red = check(str(folder), channels=3).statistics.mean[0]
    assert red == pytest.approx(pixels[[0, 5, 9, 12], ..., 0].mean(), abs=1e-12)


def test_progress_ends_at_the_total(folder, monkeypatch):
    monkeypatch.setattr(room, "CHUNK", 4)
    steps = []
    check(str(folder), on_progress=lambda done, total: steps.append((done, total)))
    assert steps[-1] == (30, 30)
    assert [done for done, _ in steps] == sorted(done for done, _ in steps)
    assert {total for _, total in steps} == {30}
    assert (4, 30) in steps


def test_it_prints_nothing(folder, capfd):
    check(str(folder))
    assert capfd.readouterr() == ("", "")


def test_the_command_is_complete(folder):
    suggestion = check(str(folder), alpha="black").suggestion
    assert shlex.split(suggestion.command) == [
        *("legodiff", "train", "--data", str(folder), "--run", "runs/my pictures", "--size", "16"),
        *("--set", "model.preset=lite-pr-16", "--set", "train.sigma_mean=-1.2"),
        *("--set", "train.sigma_std=1.2", "--set", "data.alpha=black"),
    ]
    assert (suggestion.size, suggestion.channels, suggestion.sigma_data) == ((16, 16), 3, 0.5)
    fields = {"size", "channels", "sigma_data", "sigma_mean", "sigma_std", "preset", "bricks"}
    assert set(suggestion.reasons) == fields


def test_the_command_can_be_read_by_the_configuration(folder):
    from legodiff.config import load_config

    words = shlex.split(check(str(folder), alpha="black", channels=1).suggestion.command)
    changes = [words[i + 1] for i, word in enumerate(words) if word == "--set"]
    config = load_config("digits", changes)
    assert config.model.preset == "lite-pr-16"
    assert (config.train.sigma_mean, config.train.sigma_std) == (-1.2, 1.2)
    assert (config.data.channels, config.data.alpha) == (1, "black")


def test_a_colour_is_suggested_so_that_yaml_does_not_take_it_for_a_comment(folder):
    from legodiff.config import load_config

    words = shlex.split(check(str(folder), alpha="#204080").suggestion.command)
    changes = [words[i + 1] for i, word in enumerate(words) if word == "--set"]
    assert load_config("digits", changes).data.alpha == "#204080"


def test_rare_colour_is_told_to_training(tmp_path):
    for i in range(200):
        shape = (8, 8, 3) if i == 100 else (8, 8)
        save(tmp_path / f"{i:03}.png", RNG.integers(0, 256, shape, dtype=np.uint8))
    report = check(str(tmp_path))
    assert report.channels == 3
    assert "--set data.channels=3" in report.suggestion.command


def test_classes_that_are_empty_or_unbalanced(tmp_path):
    path = tmp_path / "x.zip"
    out = io.BytesIO()
    Image.new("RGB", (8, 8)).save(out, "PNG")
    labels = [[f"{i:02}.png", 3 if i == 0 else 0] for i in range(12)]
    with zipfile.ZipFile(path, "w") as archive:
        for name, _ in labels:
            archive.writestr(name, out.getvalue())
        archive.writestr("dataset.json", f'{{"labels": {labels}}}'.replace("'", '"'))
    report = check(str(path), size=8)
    assert report.classes == {"0": 11, "1": 0, "2": 0, "3": 1}
    assert "2 classes have no images: 1, 2" in report.warnings
    assert "classes are unbalanced: 0 has 11 images, 3 1" in report.warnings
    assert report.statistics.std == (0, 0, 0)


def test_nothing_readable_is_reported(tmp_path):
    (tmp_path / "a.png").write_bytes(b"-")
    report = check(str(tmp_path))
    assert list(report.unreadable) == [f"{tmp_path}/a.png"]
    assert (report.suggestion, report.statistics, report.smallest) == (None, None, None)


def test_digits():
    report = check("digits")
    assert report.count == 1500
    assert sum(report.classes.values()) == 1500
    assert report.suggestion.command.startswith("legodiff train --data digits --run runs/digits ")
    assert report.suggestion.sigma_mean == -0.8
    assert report.channels == 1


@pytest.mark.parametrize(
    ("path", "count", "name", "channels", "size"),
    [
        ("digits:held-out", 297, "runs/digits-held-out", 1, "16"),
        ("digits:all", 1797, "runs/digits-all", 1, "16"),
        ("photographs", 8000, "runs/photographs", 3, "64"),
    ],
)
def test_sets_that_go_by_name_are_checked_as_they_are_trained_on(path, count, name, channels, size):
    report, trained = check(path), open_data(path, 16)
    assert report.count == len(trained) == count
    counts = np.bincount(trained.labels).tolist()
    assert report.classes == dict(zip(trained.class_names, counts, strict=True))
    assert not report.unreadable
    assert report.channels == channels
    words = shlex.split(report.suggestion.command)
    assert words[:8] == ["legodiff", "train", "--data", path, "--run", name, "--size", size]


@pytest.mark.parametrize(
    ("path", "how"),
    [("digits", {"channels": 3}), ("digits", {"size": (16, 32)}), ("photographs", {"channels": 1})],
)
def test_what_training_on_sets_that_go_by_name_would_refuse_is_refused(path, how):
    with pytest.raises(ValueError, match=f"^{path} are square"):
        check(path, **how)


def test_other_parts_of_the_digits_are_refused():
    with pytest.raises(ValueError, match="digits:odd is not known; choose from train, held-out"):
        check("digits:odd")


def test_latents_are_sent_back(tmp_path):
    (tmp_path / "manifest.json").write_text('{"format": "legodiff-latents-1"}')
    with pytest.raises(ValueError, match=r"holds latents; check the images they were made from$"):
        check(str(tmp_path))


def test_rows_are_the_presets():
    from legodiff.model.presets import PRESETS

    for row in ROWS:
        spec = PRESETS[row.preset]
        assert spec.image_size == (row.size, row.size)
        sizes = [brick.size for brick in spec.bricks]
        words = [
            ("image" if size == "image" else f"{size}x{size}") + f"/{brick.local}"
            for size, brick in zip(sizes, spec.bricks, strict=True)
        ]
        assert row.bricks == ", ".join(words)
        assert all(row.step % size == 0 for size in sizes if size != "image")


@pytest.mark.parametrize(
    ("shorter", "asked", "size"),
    [
        *((10, None, (16, 16)), (31, None, (16, 16)), (32, None, (32, 32)), (900, None, (64, 64))),
        *((64, (64, 128), (64, 128)), (64, (50, 50), (48, 48)), (9, (5, 9), (8, 8))),
        (999, (130, 70), (128, 64)),
    ],
)
def test_sizes(shorter, asked, size):
    assert suggest_size(shorter, asked)[0] == size


def test_noise():
    assert suggest_noise((32, 32), 0.02)[0] == suggest_noise((64, 64), 0.02)[0] == -1.2
    assert suggest_noise((128, 128), 0.02)[0] == pytest.approx(-1.2 + np.log(2), abs=0.005)
    assert suggest_noise((64, 256), 0.02)[0] == suggest_noise((128, 128), 0.02)[0]
    assert suggest_noise((16, 16), 0.5)[0] == -0.8
