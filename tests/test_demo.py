"""The demonstration, with a stack too small and a run too short to be any good."""

import json
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from conftest import judges
from PIL import Image

from legodiff import LegoPipeline, SkipPlan, config, demo
from legodiff.codec import to_pil
from legodiff.data.digits import Digits
from legodiff.evaluate.digits import DigitJudges
from legodiff.model.cost import subset_flops
from legodiff.pictures import grid
from legodiff.train import loop
from legodiff.train.checkpoint import list_checkpoints

TINY = """
model: {preset: tiny-pr-16}
train: {images: 512, batch: 32, checkpoint_images: 1000, learning_rate: 0.004, warmup_images: 0}
"""


@contextmanager
def stopping():
    """A run is asked to stop in its first step."""
    answers = iter([False])
    yield lambda: next(answers, True)


@pytest.fixture
def small(tmp_path, monkeypatch):
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "digits.yaml").write_text(TINY)
    monkeypatch.setattr(config, "RECIPES", tmp_path / "recipes")
    monkeypatch.setattr(demo, "JUDGED", 60)
    monkeypatch.setattr(demo, "STEPS", 6)
    monkeypatch.setattr(demo, "DigitJudges", judges)
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
        ("lowest brick", 1.0),
        ("lowest brick", demo.GUIDANCE),
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
    assert ends == {"learning digits": (512, 512), "drawing digits": (360, 360)}

    for name in ("digits", "skipped", "refinement", "loss"):
        assert min(Image.open(small / f"{name}.png").size) > 200
    saved = json.loads((small / demo.REPORT).read_text())
    assert [row["accuracy"] for row in saved["rows"]] == [row.accuracy for row in report.rows]
    assert saved["plan"] == report.plan.to_dict()


def test_pictures_and_judges_get_what_the_table_says(small, monkeypatch):
    panels, judged = [], []
    captioned, judge = demo.captioned, DigitJudges.judge
    monkeypatch.setattr(demo, "captioned", lambda given: panels.append(given) or captioned(given))
    monkeypatch.setattr(DigitJudges, "judge", lambda *args: judged.append(args[1:]) or judge(*args))
    report = run(small)
    pipe = LegoPipeline.from_pretrained(small)
    labels, full = [number % 10 for number in range(60)], SkipPlan.full(3)
    plans = [full, report.plan, SkipPlan(((0.0, (0,)),))]
    drawn = [
        pipe(labels=labels, seeds=range(60), steps=6, guidance=guidance, plan=plan, batch=60).images
        for plan in plans
        for guidance in (1.0, demo.GUIDANCE)
    ]
    for (pixels, asked), images in zip(judged, drawn, strict=True):
        assert asked.tolist() == labels
        assert np.array_equal(pixels[:, 0], np.stack([np.asarray(image) for image in images]))
    digits, skipped = panels
    data = Digits(16)
    real = [Image.fromarray(data.images[data.labels == label][0, 0]) for label in range(10)]
    first = np.asarray(grid(real, 10))
    assert np.array_equal(np.asarray(digits[0][1])[: len(first)], first)  # the real ones
    for shown, images in [
        (digits[1], drawn[1]),
        (digits[2], drawn[0]),
        (skipped[0], drawn[1]),
        (skipped[1], drawn[3]),
    ]:
        assert np.array_equal(np.asarray(shown[1]), np.asarray(grid(images, 10)))
    assert "no guidance" in digits[2][0]
    assert f"{report.share:.0%}" in skipped[1][0]


def test_the_refinement_picture_shows_each_brick(small, monkeypatch):
    tables = []
    draw = demo.table_of_images
    monkeypatch.setattr(demo, "table_of_images", lambda *args: tables.append(args) or draw(*args))
    run(small)
    rows, columns, _ = tables[0]
    assert [float(column) for column in columns] == sorted(float(column) for column in columns)
    pipe, data = LegoPipeline.from_pretrained(small), Digits(16)
    for start, label in ((0, 3), (5, 8)):
        clean = pipe.codec.encode(torch.from_numpy(data.images[data.labels == label][:1]))
        noise = torch.randn(6, 1, 16, 16, generator=torch.Generator().manual_seed(label))
        sigma = torch.tensor([float(column) for column in columns])
        noisy = clean + sigma.view(-1, 1, 1, 1) * noise
        expected = [clean.expand_as(noisy), noisy / (1 + sigma.view(-1, 1, 1, 1) ** 2) ** 0.5] + [
            pipe.stack(noisy, sigma, torch.full((6,), label), bricks=range(top + 1)).detach()
            for top in range(3)
        ]
        for (caption, shown), images in zip(rows[start : start + 5], expected, strict=True):
            same = to_pil(pipe.codec.decode(images))
            for one, other in zip(shown, same, strict=True):
                apart = np.abs(np.asarray(one, int) - np.asarray(other, int)).max()
                assert apart <= 1, caption


def test_what_was_stopped_is_not_judged_and_begun_anew(small, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(loop, "stop_asked", stopping)
        with pytest.raises(KeyboardInterrupt):
            run(small)
    assert [int(path.name) for path in list_checkpoints(small)] == [32]
    assert json.loads((small / demo.REPORT).read_text()) == {}
    assert not (small / "digits.png").exists()
    assert run(small).train_images == 512
    assert [int(path.name) for path in list_checkpoints(small)] == [512]


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
