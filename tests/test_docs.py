"""What README and docs say is so: their commands run, their links lead somewhere, names exist."""

import importlib
import re
import shlex
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import awaken, judges
from PIL import Image
from small_runs import plan_quickly
from test_demo import TINY

from legodiff import LegoPipeline, LegoStack, cli, config, demo, preset
from legodiff.codec import PixelCodec
from legodiff.evaluate import bench, digits

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(language):
    """The code blocks of all pages in a language."""
    found = []
    for page in PAGES:
        for text in re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.M | re.S):
            name = f"{page.name}: {text.strip().splitlines()[0][:40]}"
            found.append(pytest.param(text, id=name))
    return found


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder in which runs/demo and runs/scenes are small models and training is short."""
    torch.manual_seed(0)
    stack = awaken(LegoStack(preset("tiny-pr-16", channels=1, classes=10))).eval()
    (tmp_path / "recipes").mkdir()
    for name in ("digits", "images-32", "images-64", "celeba-64-s-pg"):
        (tmp_path / "recipes" / f"{name}.yaml").write_text(TINY)
    monkeypatch.setattr(config, "RECIPES", tmp_path / "recipes")
    run = config.load_config("digits").model_dump(mode="json")
    pipe = LegoPipeline(stack, PixelCodec((0.0,)), tuple("0123456789"), label_dropout=0.1, run=run)
    pipe.save_pretrained(tmp_path / "runs" / "demo")
    (tmp_path / "runs" / "demo" / demo.REPORT).write_text("{}")
    pipe.class_names = ("temple", "flower", *pipe.class_names[2:])
    pipe.save_pretrained(tmp_path / "runs" / "scenes")
    (tmp_path / "photos").mkdir()
    for number in range(8):
        pixels = np.random.default_rng(number).integers(0, 255, (20, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{number}.png")
    monkeypatch.setattr(demo, "JUDGED", 60)
    monkeypatch.setattr(demo, "STEPS", 2)
    plan_quickly(monkeypatch)
    monkeypatch.setattr(demo, "DigitJudges", judges)
    monkeypatch.setattr(digits, "DigitJudges", judges)
    monkeypatch.setattr(bench, "PRODUCT", {"cpu": 64})
    monkeypatch.setattr(bench, "TURN", 1e-9)
    monkeypatch.setattr("legodiff.studio.server.serve", lambda studio, at: at.close())
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("text", blocks("bash"))
def test_commands_run(text, place, monkeypatch):
    targets = re.findall(r"^([a-z]+):.*##", (ROOT / "Makefile").read_text(), re.M)
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        words = words[next((i for i, w in enumerate(words) if "=" not in w), 0) :]  # VAR=value make
        if words[:1] == ["torchrun"]:  # as one process; tests/test_distributed.py starts several
            words = ["1" if word == "4" else word for word in words[words.index("legodiff") :]]
        if words[:1] == ["legodiff"]:
            words = ["train.images=64" if "train.images=" in word else word for word in words]
            if "runs/scenes" in words and "train" in words:  # a model is there for other pages
                shutil.rmtree(place / "runs" / "scenes")
            monkeypatch.setattr(sys, "argv", words)
            with pytest.raises(SystemExit) as end:
                cli.main()
            assert not end.value.code, line
        elif words[:1] == ["make"]:
            assert words[1] in targets
        else:  # other programs are not ours to test
            assert not words or words[0] in ("pip", "git", "cd", "python3"), line


@pytest.mark.parametrize("text", blocks("python"))
def test_python_runs(text, place):
    exec(compile(text, "<docs>", "exec"), {})


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    text = page.read_text()
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)|<img src=\"([^\"]+)\"", text):
        target = target[0] or target[1]
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target


def lookup(path):
    """The object of a dotted path; a field of a dataclass counts."""
    parts = path.split(".")
    for end in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:end]))
        except ModuleNotFoundError:
            continue
        for name in parts[end:]:
            found = getattr(found, name)
        return found
    raise AssertionError(path)


def test_every_symbol_has_its_identifier():
    rows = [line for line in (ROOT / "docs" / "symbols.md").read_text().splitlines() if "`" in line]
    assert len(rows) > 20
    for row in rows:
        names = re.findall(r"`([^`]+)`", row)
        homes = [name for name in names if name.startswith("legodiff.")]
        assert homes, row
        for home in homes:
            found = lookup(home)
            for name in set(names) - set(homes):  # "`size` of `legodiff...`", or a parameter
                known = getattr(found, "__dataclass_fields__", None) or found.__code__.co_varnames
                assert name in known, (home, name)
