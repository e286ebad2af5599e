"""Commands of the docs that ask for a download, a GPU or days: the same words on stand-ins.

Data sets, checkpoints, networks of features, the Hub and the authors' code are small ones made
here, recipes and presets are tiny, and counts are small. Without a GPU its suite must say so.
"""

import runpy
import shlex
import shutil
import sys
import types
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import test_reproduce
import torch
from conftest import awaken, judges
from fake_hub import TOKEN, fake_hub
from fastapi.testclient import TestClient
from PIL import Image
from safetensors.torch import save_file
from small_runs import plan_quickly
from test_demo import TINY
from test_docs import ROOT, blocks
from test_interop import edm_pickle, save_diffusers
from test_suites import make_small
from toy_features import toy
from vaes import make_vae

from legodiff import BrickSpec, LegoPipeline, LegoStack, StackSpec, cli, config, preset
from legodiff.codec import PixelCodec
from legodiff.evaluate import assets, authors, bench, digits, features, lpips, suite_h100, suites
from legodiff.evaluate.lpips import AlexNet
from legodiff.interop import importing
from legodiff.interop.importing import import_model
from legodiff.interop.state_dict import tensors_in
from legodiff.model.presets import PRESETS
from legodiff.store import sha256
from legodiff.studio import server
from legodiff.studio.drawing import Studio
from legodiff.studio.requests import Limits

FEW = {
    "--images": {"2000": "20", "40000": "64"},
    "--samples": {"50000": "40"},
    "--canvases": {"24": "2"},
    "--rounds": {"7": "1", "12": "1"},
    "--seconds": {"200": "0.05"},
    "--size": {"256": "64"},
    "--expect-world": {"16": "1"},
}
"""Options whose numbers are made small: from, to."""
SHORT = ["train.images=64", "train.batch=32"]


def pictures(folder, count, size, names=("",)):
    for number in range(count):
        path = folder / names[number % len(names)] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 255, (*size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)


def model(folder, channels=3, classes=10, **how):
    torch.manual_seed(0)
    spec = preset("tiny-pr-16", channels=channels, classes=classes)
    pipe = LegoPipeline(awaken(LegoStack(spec)).eval(), PixelCodec((0.0,) * channels), **how)
    pipe.save_pretrained(folder)


def small_lego(name, channels, classes):
    """What the golden weights are, whatever they are called."""
    assert name == "lego_L_PG_64"
    patches = (BrickSpec(4, 2, 1), BrickSpec(8, 4, 2), BrickSpec("image", 2, 1))
    return StackSpec((16, 16), channels, 16, 2, patches, classes)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder that holds whatever the docs speak of."""
    monkeypatch.chdir(tmp_path)
    for package in ("torch_utils", "torch_utils.persistence", "training", "training.lego_models"):
        monkeypatch.setitem(sys.modules, package, types.ModuleType(package))

    def data():
        pictures(tmp_path / "imagenet" / "train", 48, (72, 72), ("ant", "bee"))
        pictures(tmp_path / "canvases", 2, (64, 128))
        pictures(tmp_path / "faces", 48, (24, 20))
        with zipfile.ZipFile("img_align_celeba.zip", "w") as archive:
            for path in sorted((tmp_path / "faces").glob("*.png")):
                archive.write(path, f"img_align_celeba/{path.name}")
        rng, known = np.random.default_rng(0), toy(standard=True, spatial=True, logits=True)
        for name in ("VIRTUAL_imagenet256_labeled", "samples"):
            pixels = rng.integers(0, 256, (60, 16, 16, 3), np.uint8)
            found = known.run(torch.from_numpy(pixels).permute(0, 3, 1, 2))
            moments = {}
            for word, values in (("", found.pool), ("_s", found.spatial)):
                moments |= {f"mu{word}": values.double().mean(0).numpy()}
                moments |= {f"sigma{word}": np.cov(values.double().numpy(), rowvar=False)}
            np.savez(f"{name}.npz", arr_0=pixels, **(moments if name[0] == "V" else {}))

    def models():
        run = config.load_config("digits", SHORT).model_dump(mode="json")
        names, how = tuple("0123456789"), {"label_dropout": 0.1}
        model(tmp_path / "runs" / "demo", 1, class_names=names, run=run, **how)
        for name in ("imagenet-256", "imagenet-64", "flowers"):
            model(tmp_path / "runs" / name, run=run, **how)

    def checkpoints():
        for name in ("network-snapshot", "network-snapshot-100000"):
            edm_pickle(tmp_path / f"{name}.pkl", "lego_pg")
        whole, how = (BrickSpec("image", 2, 1),), {"refine": False, "objective": "ddpm"}
        dit = LegoStack(StackSpec((16, 16), 4, 384, 6, whole, classes=1000, **how))
        dit.bricks[0].embed.weight.data[:, -8:] = 0  # theirs reads no coordinates
        torch.save({"ema": tensors_in(dit, "dit")}, "DiT-XL-2-256x256.pt")
        save_diffusers(tmp_path / "stable-diffusion", "UNet2DConditionModel")
        shape = torch.randn(1, 3, 12)
        save_file({"encoder_hidden_states": shape}, tmp_path / "prompt.safetensors")
        save_diffusers(tmp_path / "ddpm-theirs")
        for name, file in (("lego-l", "network-snapshot.pkl"), ("ddpm", "ddpm-theirs")):
            pipe, _ = import_model(tmp_path / file)
            pipe.save_pretrained(tmp_path / "imported" / name)

    monkeypatch.setattr(importing, "official_spec", small_lego)
    (tmp_path / "recipes").mkdir()
    for name in config.recipes():
        (tmp_path / "recipes" / f"{name}.yaml").write_text(TINY)
    monkeypatch.setattr(config, "RECIPES", tmp_path / "recipes")
    for make in (data, models, checkpoints):
        make()
    return tmp_path


@pytest.fixture
def hub(place, monkeypatch):
    """A Hub with the models that the docs name."""
    make_vae(place / "vae")
    with fake_hub(place / "cache", monkeypatch) as hub:
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        hub.upload("stabilityai/sd-vae-ft-ema", place / "vae")
        hub.upload("google/ddpm-cifar10-32", place / "ddpm-theirs")
        yield hub


@pytest.fixture
def quick(place, monkeypatch):
    """Experiments, suites and judges at a size that takes seconds."""
    monkeypatch.setattr(digits, "DigitJudges", judges)
    monkeypatch.setattr(sys.modules["legodiff.cli.evaluate"], "DRAWN", 40)
    known = toy(standard=True, spatial=True, logits=True, name="Inception")
    monkeypatch.setattr(features, "_inception", lambda weights, device: known)
    trunk = {f"features.{key}": value for key, value in AlexNet().features.state_dict().items()}
    torch.save(trunk, place / assets.ALEXNET.file)
    known_by = replace(assets.ALEXNET, sha256=sha256(place / assets.ALEXNET.file))
    monkeypatch.setitem(lpips.NETS, "alex", (AlexNet, known_by, assets.ALEX_HEADS))
    monkeypatch.setenv("LEGODIFF_ASSETS", str(place))
    plan_quickly(monkeypatch)
    monkeypatch.setattr(bench, "PRODUCT", {"cpu": 64})
    monkeypatch.setattr(bench, "TURN", 1e-9)
    make_small(monkeypatch)
    for name in ("lego-s-pr-64", "dit-s-2-64"):
        monkeypatch.setitem(PRESETS, name, PRESETS["lego-s-pg-64"])
    theirs = lambda own, _: (own, replace(own, name="theirs", parts=()))  # noqa: E731
    for module in (authors, suites, suite_h100):
        monkeypatch.setattr(module, "beside_authors", theirs)
    for name in ("table1", "table4", "figure4"):
        experiment = test_reproduce.ALL[name]
        scales = {
            which: replace(
                getattr(experiment, which), models=test_reproduce.TWO, samples=20, steps=2
            )
            for which in ("small", "paper")
        }
        monkeypatch.setitem(test_reproduce.ALL, name, replace(experiment, **scales))


SMALL = {
    "bricks": {
        "RIVALS": {"dit": (32, [("image", 16, 1)]), "lego": (32, [("image", 16, 1), (16, 8, 1)])},
        **{"DRAWN": 100, "JUDGED": 8, "STEPS": 1, "BATCH": 8, "EQUAL": 1},
    },
    "training": {
        **{"IMAGES": 64, "DRAWN": 20, "STEPS": 2, "ORDERS": {"pr": "tiny-pr-16"}},
        **{"FILLS": ("skip",), "RATIOS": (0.5,)},
    },
    "scale": {
        **{"MODEL": "lite-pr-16", "SIDES": (16,), "BATCHES": (1,), "ROUNDS": 1, "TURNS": 1},
        **{"CANVASES": ((16, 16),), "PROCESSES": (1,), "IMAGES": (2, 8), "DRAWS": "tiny-pr-16"},
        "draw": lambda model, processes, images: 1 + images / processes,
    },
}
"""What is smaller in a benchmark."""
BOTH = (("rivals", "RIVALS"), ("rivals", "BATCH"))
"""What ``bricks`` has from another file."""


def few(words):
    return [FEW.get(words[at - 1], {}).get(word, word) for at, word in enumerate(words)]


def run_benchmark(name, words, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    more = ["--count", "30", "--steps", "1"] if "--crops" in words else []
    more += ["--rounds", "1", "--no-compile"] if "kernels" in name else []
    monkeypatch.setattr(sys, "argv", [*few([name, *words]), *more])
    module = runpy.run_path(str(ROOT / name))
    small = SMALL["bricks"] | {"LEARNT": 4200, "HELD_OUT": 16}
    for part, key in (("rendered", "LEARNT"), ("rendered", "HELD_OUT"), *BOTH):
        if hasattr(sys.modules.get(part), key):
            monkeypatch.setattr(sys.modules[part], key, small[key])
    module["main"].__globals__.update({"DigitJudges": judges, **SMALL.get(name[11:-3], {})})
    module["main"]()


def run_curl(words, client):
    """What curl sends, sent to a studio without a network."""
    data = words[words.index("-d") + 1] if "-d" in words else None
    assert words[0].startswith("http://127.0.0.1:7860/")
    headers = dict(words[at + 1].split(": ") for at, word in enumerate(words) if word == "-H")
    answer = client.request("POST" if data else "GET", words[0], content=data, headers=headers)
    assert answer.status_code == 200, answer.text


def run_legodiff(words, monkeypatch, capsys):
    small = few(words)
    if small[1] == "bench" and "--suite" not in small:
        small += ["--rounds", "1"]
    if small[1] == "train":
        small += [part for one in SHORT for part in ("--set", one)]
    monkeypatch.setattr(sys, "argv", small)
    with pytest.raises(SystemExit) as end:
        cli.main()
    said = capsys.readouterr().err
    if "h100" in words and not torch.cuda.is_available():
        assert end.value.code == 2
        assert said.startswith("error: --device cuda cannot be used here"), said
    else:
        assert not end.value.code, f"{shlex.join(words)}: {said}"


@pytest.mark.parametrize("text", blocks("sh"))
def test_commands_run_on_stand_ins(text, place, hub, quick, monkeypatch, capsys):
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if "export" in words[1:2] and words[2].startswith("models/"):
            shutil.copytree(place / "imported", place / "models", dirs_exist_ok=True)
        if "owner/flowers@v1.0" in words:
            refs = hub.repos["owner/flowers"]["refs"]
            refs["v1.0"] = refs["main"]
        if "legodiff" in words:  # torchrun and srun are those of a cluster
            run_legodiff(words[words.index("legodiff") :], monkeypatch, capsys)
        elif words[:1] == ["python"]:
            run_benchmark(words[1], words[2:], monkeypatch)
        elif words[:1] == ["curl"]:
            studio = Studio(
                LegoPipeline.from_pretrained("runs/demo"), "demo", Limits(4, 20, 9999, 1)
            )
            with TestClient(server.app(studio), base_url="http://127.0.0.1:7860") as client:
                run_curl(words[1:], client)
        else:
            assert not words or words[0] == "export"
