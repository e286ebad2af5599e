import json

import numpy as np
import pytest
import torch
from conftest import judges
from PIL import Image
from safetensors.torch import save_file

from legodiff import LegoPipeline
from legodiff.cli.evaluate import is_model
from legodiff.evaluate import digits
from legodiff.evaluate.lpips import AlexNet

FAST = ("--steps", 2, "--batch", 40, "--samples", 80)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(digits, "DigitJudges", judges)


@pytest.fixture
def run(model, tmp_path):
    pipe = LegoPipeline.from_pretrained(model)
    pipe.run = {"data": {"path": "digits"}}
    pipe.save_pretrained(tmp_path / "run")
    return tmp_path / "run"


def metrics(folder):
    return json.loads((folder / "metrics.json").read_text())


def test_a_model_is_measured_against_what_it_learnt_from(call, run):
    code, out, _ = call("evaluate", run, *FAST)
    assert code == 0
    found = metrics(run)
    names = [one["name"] for one in found]
    tail = "digits-80(train)"
    assert names == [
        *(f"FD-{tail}", f"KD-{tail}", f"precision-{tail}", f"recall-{tail}", f"nearest-{tail}"),
    ]
    assert all(name in out for name in names)
    assert "80 images: Fréchet distances are biased upwards" in out
    protocol = found[0]
    assert protocol["images"]["seeds"] == "0-79"
    assert protocol["images"]["labels"] == "all 10 classes in turn"
    assert protocol["images"]["rounding"] == "to the nearest of 256 levels"
    assert protocol["images"]["steps"] == 2
    assert protocol["reference"]["images"] == 1500
    assert len(protocol["features"]["sha256"]) == 64
    for name in ("nearest.png", "distances.png", "nearest.csv"):
        assert (run / name).is_file()


def test_it_is_the_same_from_a_folder_from_an_npz_and_with_kept_statistics(call, run, tmp_path):
    labels = ("--labels", "0-9", "--seeds", "0-79", "--steps", 2, "--batch", 40)
    assert call("sample", run, *labels, "--out", tmp_path / "drawn")[0] == 0
    assert call("evaluate", run, *FAST)[0] == 0
    stats = ("evaluate", "stats", "digits", "--size", 16, "--out", tmp_path / "real.npz")
    code, out, _ = call(*stats)
    assert code == 0
    assert "1,500 images, digits (" in out
    against = ("--reference", "digits")
    assert call("evaluate", tmp_path / "drawn", *against)[0] == 0
    statistics = ("--reference", tmp_path / "real.npz", "--features", "digits")
    assert call("evaluate", tmp_path / "drawn", *statistics, "--out", tmp_path / "s")[0] == 0
    wanted = [one["value"] for one in metrics(run)]
    assert [one["value"] for one in metrics(tmp_path / "drawn-metrics")] == pytest.approx(wanted)
    assert [one["value"] for one in metrics(tmp_path / "s")] == pytest.approx(wanted[:-1])
    assert metrics(tmp_path / "drawn-metrics")[0]["images"]["made"]["sampler"] == "heun"
    code, _, err = call(*stats)
    assert (code, err.count("\n")) == (2, 1)
    assert "real.npz exists already; add --overwrite" in err
    assert call(*stats, "--overwrite")[0] == 0


def test_an_npz_of_adm_is_measured_by_any_features(call, tmp_path):
    class Means(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.adaptive_avg_pool2d(images.float(), 2).flatten(1)

    torch.jit.script(Means()).save(tmp_path / "means.pt")
    rng = np.random.default_rng(0)
    for name in ("drawn", "real"):
        pixels = rng.integers(0, 256, (30, 16, 16, 3), np.uint8)
        np.savez(tmp_path / f"{name}.npz", arr_0=pixels)
    paths = (tmp_path / "drawn.npz", "--reference", tmp_path / "real.npz")
    assert call("evaluate", "images", *paths, "--features", tmp_path / "means.pt")[0] == 0
    found = {one["name"]: one["value"] for one in metrics(tmp_path / "drawn-metrics")}
    assert found["FD-means-30(real)"] > 0


def test_mistakes_are_one_line_and_nothing_is_written(call, run, model, tmp_path, monkeypatch):
    for name in ("LEGODIFF_ASSETS", "LEGODIFF_CACHE", "TORCH_HOME"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    digits_of = ("--features", "digits")
    for words, message in (
        ((model, *FAST), "does not say what it was trained on; give --reference"),
        ((run, *FAST, "--features", "inception"), "FID's Inception is missing: put https://"),
        ((run, *FAST, "--features", "vgg"), "choose inception, dinov2, digits, pooled"),
        ((run, *FAST, *digits_of, "--reference", tmp_path / "no"), "there is no"),
        ((run, *FAST, "--skip", "0.5", "--budget", "0.5"), "give --skip or --budget, not both"),
        ((run, *FAST, "--labels", "11"), "11"),
        ((run, *FAST, "--guidance", "2", "--labels", "none"), "guidance needs labels"),
        (("digits", *digits_of, "--samples", 5000, "--reference", "digits"), "there are 1,500"),
        (("digits", *digits_of), "does not say what it was trained on"),
        ((tmp_path / "no", *digits_of, "--reference", "digits"), "there is no"),
        (("stats", "digits", "--out", tmp_path / "x.json"), "let the name end in .npz"),
    ):
        code, _, err = call("evaluate", *words)
        assert code == 2, words
        assert err.count("\n") == 1, err
        assert message in err
    assert not list(tmp_path.glob("**/metrics.json"))
    assert not (tmp_path / "x.json").exists()


def test_help_shows_the_options_of_measuring(call):
    for words in (("evaluate", "--help"), ("evaluate", "stats", "--help")):
        code, out, _ = call(*words)
        assert code == 0
        assert "--features" in out
        assert "Example" in out
    examples = call("evaluate", "--help")[1].split("Example")[1]
    for name in ("stats", "canvas"):
        assert f"legodiff evaluate {name} " in examples


def test_canvases_are_compared_crop_by_crop(call, tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    (tmp_path / "wide").mkdir()
    for number in range(2):
        pixels = rng.integers(0, 256, (64, 96, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "wide" / f"{number}.png")
    words = ("evaluate", "canvas", tmp_path / "wide", "--reference", "photographs", "--size", 32)
    code, out, err = call(*words, "--real", 5, "--net", "plain")
    assert code == 0, err
    found = metrics(tmp_path / "wide-metrics")
    assert found[0]["name"] == "PD-gradients-grid-32(nearest of 5)"
    assert found[0]["images"] == {"path": "wide", "canvases": 2, "crops": 12}
    assert found[1]["value"] > found[0]["value"] > 0
    assert "PD-gradients-random-32" in out

    torch.manual_seed(0)
    tensors = {f"features.{k}": v for k, v in AlexNet().features.state_dict().items()}
    save_file(tensors, tmp_path / "mine.safetensors")
    code, _, err = call(*words, "--real", 5, "--trunk", tmp_path / "mine.safetensors")
    assert code == 0, err  # LPIPS' heads come with torchmetrics
    names = [one["name"] for one in metrics(tmp_path / "wide-metrics")]
    assert "PD-mine-grid-32(nearest of 5)" in names  # not LPIPS: other weights
    assert "PD-gradients-grid-32(nearest of 5)" in names  # is kept

    for name in ("LEGODIFF_ASSETS", "LEGODIFF_CACHE", "TORCH_HOME"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    for more, message in (
        ((), "torchvision's AlexNet is missing: put https://"),
        (("--net", "squeeze"), "unknown network 'squeeze'"),
        (("--net", "plain", "--size", "128"), "has no crop of 128x128"),
    ):
        code, _, err = call(*words, *more)
        assert (code, err.count("\n")) == (2, 1)
        assert message in err


def test_models_are_told_from_images(run, tmp_path):
    assert is_model(str(run))
    assert is_model("owner/name")
    assert is_model("owner/name@v1.0")
    assert is_model("owner/lego-v1.5")
    for images in ("hf:owner/name", "digits", "photos/all.npz", str(tmp_path), "shards/{0..9}.tar"):
        assert not is_model(images)
