"""The demonstration, with a stack too small and a run too short to be any good."""

import json

import pytest
import torch
from PIL import Image

from legodiff import LegoPipeline, config, demo
from legodiff.model.cost import subset_flops

TINY = """
model: {preset: tiny-pr-16}
train: {images: 128, batch: 32, checkpoint_images: 1000}
"""


@pytest.fixture
def small(tmp_path, monkeypatch):
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "digits.yaml").write_text(TINY)
    monkeypatch.setattr(config, "RECIPES", tmp_path / "recipes")
    monkeypatch.setattr(demo, "JUDGED", 60)
    monkeypatch.setattr(demo, "STEPS", 6)
    return tmp_path / "run"


def run(folder, seed=0, told=None):
    show = lambda *args: told.append(args) if told is not None else None  # noqa: E731
    return demo.run_demo(folder, seed, torch.device("cpu"), show)


def test_it_trains_draws_judges_and_shows(small):
    told = []
    report = run(small, told=told)
    assert [(row.name, row.guidance) for row in report.rows] == [
        ("all bricks", 1.0),
        ("all bricks", demo.GUIDANCE),
        ("bricks skipped", 1.0),
        ("bricks skipped", demo.GUIDANCE),
        ("lowest brick only", 1.0),
        ("lowest brick only", demo.GUIDANCE),
    ]
    assert [row.nfe for row in report.rows] == [11, 22] * 3
    spec = LegoPipeline.from_pretrained(small).stack.spec
    every, fewer = (subset_flops(spec, bricks, (16, 16)) / 1e6 for bricks in [(0, 1, 2), (0, 1)])
    assert report.rows[0].mflops == pytest.approx(11 * every)
    skipped = sum(2 not in report.plan.bricks(s) for s in (80.0, 25.0, 6.0, 1.0, 0.1, 0.002))
    assert 0 < skipped < 6
    cost = ((2 * skipped - 1) * fewer + (12 - 2 * skipped) * every) / (11 * every)
    assert report.share == pytest.approx(cost)
    assert report.share <= demo.BUDGET
    assert 0.9 < report.real_accuracy <= 1
    assert all(0 <= row.accuracy <= 1 and row.fd_digits > report.floor for row in report.rows)
    assert report.skipped_steps == skipped
    assert (report.steps, report.bricks, report.real_digits) == (6, 3, 1500)
    ends = {title: (done, total) for title, done, total, _ in told}
    assert ends == {"learning digits": (128, 128), "drawing digits": (360, 360)}

    for name in ("digits", "skipped", "refinement", "loss"):
        assert min(Image.open(small / f"{name}.png").size) > 200
    saved = json.loads((small / demo.REPORT).read_text())
    assert [row["accuracy"] for row in saved["rows"]] == [row.accuracy for row in report.rows]
    assert saved["plan"] == report.plan.to_dict()


def test_an_earlier_demonstration_is_replaced_and_anything_else_is_not(small, monkeypatch):
    run(small)
    (small / "mine").mkdir()
    (small / "mine" / "notes.txt").write_text("keep me")
    run(small, seed=1)
    assert (small / "mine" / "notes.txt").read_text() == "keep me"
    assert json.loads((small / "config.json").read_text())["run"]["train"]["seed"] == 1
    (small / demo.REPORT).unlink()
    before = {path: path.read_bytes() for path in small.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match="holds something else"):
        run(small)
    (small / demo.REPORT).write_text("{}")
    before[small / demo.REPORT] = b"{}"
    monkeypatch.setattr(demo, "find_spec", lambda name: None if name == "matplotlib" else True)
    with pytest.raises(ValueError, match="the demo needs matplotlib"):  # before anything is done
        run(small)
    assert before == {path: path.read_bytes() for path in small.rglob("*") if path.is_file()}
