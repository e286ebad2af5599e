import json

import numpy as np
import pytest
import torch
from PIL import Image
from small_runs import CODEC, Bars, config

from legodiff import LegoPipeline, LegoStack, preset
from legodiff.train import health
from legodiff.train.distributed import World
from legodiff.train.health import Probe, bad_positions, draw_pictures
from legodiff.train.learner import build_learner, build_network


@pytest.fixture
def learner():
    settings = config()
    network = build_network(settings.model.spec(1, 2), 0)
    return build_learner(network, CODEC, settings.train, World())


def test_the_probe_is_the_mean_loss_of_images_that_never_change(learner):
    probe = Probe(Bars(), 0, torch.device("cpu"))
    losses = probe.losses(learner.average, 16)
    assert losses == pytest.approx(probe.losses(learner.average, 7), rel=1e-5)
    with torch.no_grad():
        values = learner.average(probe.images, probe.labels, range(40), (0, 1, 2)).values
    assert losses == pytest.approx(values.mean(dim=1).tolist(), rel=1e-4)
    assert len(probe.images) == 40
    assert all(parameter.grad is None for parameter in learner.network.parameters())


@pytest.mark.parametrize(("classes", "columns"), [(0, 10), (2, 10), (3, 9), (10, 10), (50, 10)])
def test_pictures_are_sorted_by_class_and_never_change(tmp_path, monkeypatch, classes, columns):
    asked, shown = [], []
    draw, grid = LegoPipeline.__call__, health.grid

    def watch(self, **options):
        asked.append(options)
        return draw(self, **options)

    monkeypatch.setattr(LegoPipeline, "__call__", watch)
    monkeypatch.setattr(health, "grid", lambda images, n: shown.append(n) or grid(images, n))
    monkeypatch.setattr(health, "STEPS", 1)
    pipe = LegoPipeline(LegoStack(preset("tiny-pr-16", channels=1, classes=classes)).eval())
    for name in ("a", "b"):
        draw_pictures({"one": pipe, "other": pipe}, tmp_path / f"{name}.png", True, 99)
    assert shown == [columns] * 4
    labels, seeds = asked[0]["labels"], asked[0]["seeds"]
    assert len(labels) == len(seeds) == 4 * columns
    by_column = [set(labels[column::columns]) for column in range(columns)]
    assert all(len(found) == 1 for found in by_column)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    draw_pictures({"one": pipe}, tmp_path / "c.png", write=False, micro_batch=7)
    assert not (tmp_path / "c.png").exists()
    assert {options["batch"] for options in asked} == {4 * columns, 7}  # what memory holds


def test_the_curve_is_drawn_from_the_log_where_it_can_be(tmp_path, monkeypatch):
    line = {"images": 4, "losses": [1.0], "bands": [[1.0] * 6]}
    (tmp_path / "log.jsonl").write_text(json.dumps(line) + "\n")
    monkeypatch.setattr(health, "find_spec", lambda name: None)
    health.draw_curve(tmp_path, ["image"])
    assert not (tmp_path / "loss.png").exists()
    monkeypatch.undo()
    health.draw_curve(tmp_path, ["image"])
    assert np.asarray(Image.open(tmp_path / "loss.png")).std() > 0


def test_bad_positions_are_those_of_images_with_a_loss_that_is_not_finite():
    values = torch.ones(3, 5)
    values[1, 2], values[0, 4], values[2, 4] = torch.nan, torch.inf, -torch.inf
    assert bad_positions(values, range(10, 15)) == [12, 14]
