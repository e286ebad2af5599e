"""The examples run, at small settings, and do what they say."""

import json
import re
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import judges
from PIL import Image

from legodiff.evaluate import digits

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture
def example(monkeypatch, capsys, tmp_path):
    """Runs one in an empty folder; gives what it printed."""
    monkeypatch.chdir(tmp_path)

    def run(name, *words):
        monkeypatch.setattr(sys, "argv", [name, *map(str, words)])
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
        return capsys.readouterr().out

    return run


def test_they_are_short_and_say_how_they_are_called():
    names = sorted(path.stem for path in EXAMPLES.glob("*.py"))
    assert len(names) == 5
    for name in names:
        text = (EXAMPLES / f"{name}.py").read_text()
        assert len(text.splitlines()) < 60
        assert f"python examples/{name}.py" in text


def test_train_on_a_folder(example, tmp_path):
    for number in range(12):
        folder = tmp_path / "photos" / ("cats" if number % 2 else "dogs")
        folder.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 255, (20, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    words = ("photos", "run", "--preset", "tiny-pr-16", "--images", 64, "--batch", 16)
    assert "classes: ('cats', 'dogs')" in example("train_on_a_folder", *words)
    assert Image.open("run/sixteen.png").size == (4 * 48 + 6, 4 * 48 + 6)
    assert "resumed run after 64 images" in example("train_on_a_folder", *words)


def test_a_budget_sweep(example, model):
    out = example("budget_sweep", model, "--budgets", 1, 0.8, 0.01, "--out", "a.png")
    full, less, none = out.splitlines()[:3]
    assert "0.00 grey levels" in full
    costs = [float(re.search(r"(\d+) MFLOPs", line)[1]) for line in (full, less)]
    assert costs[1] <= 0.8 * costs[0]
    assert "budget 0.01 is too small" in none
    assert Image.open("a.png").width > 2 * 4 * 48


def test_a_panorama(example, model):
    out = example("panorama", model, "--labels", "zero", 3, "--size", 16, 48, "--steps", 2)
    assert Image.open("wide.png").size == (48, 16)
    expected, found = (int(n) for n in re.findall(r"([\d,]+) evaluations", out))
    assert expected == pytest.approx(found, rel=0.3)


def test_a_foreign_base(example):
    out = example("foreign_base", "--images", 1640)
    first, *_, last = [
        [float(n) for n in re.findall(r"(?:loss|brick) (\d+\.\d+)", line)]
        for line in out.splitlines()
    ]
    assert first[1] == pytest.approx(first[0])  # the brick begins as the identity
    assert last[1] < 0.8 * last[0]


def test_an_evaluation(example, model, monkeypatch):
    monkeypatch.setattr(digits, "DigitJudges", judges)
    out = example("evaluate_a_model", model, "--samples", 50)
    assert "FD-digits-50(train)" in out
    records = json.loads(Path("metrics/metrics.json").read_text())
    assert records
