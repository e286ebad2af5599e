"""The benchmarks run; their figures are not asserted."""

import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import awaken, judges
from PIL import Image

from legodiff import LegoPipeline, LegoStack, StackSpec, planning, preset

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def benchmark(monkeypatch, name, *words):
    """The functions of a benchmark, called as from the command line by ``main``."""
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, words)])
    module = runpy.run_path(str(BENCHMARKS / f"{name}.py"))
    module["main"].__globals__["DigitJudges"] = judges
    return module


def test_digits(monkeypatch, capsys):
    short = ["--set", "train.images=64", "--set", "train.batch=32"]
    module = benchmark(monkeypatch, "digits", "tiny-pr-16", "--seeds", 3, *short)
    module["measure"].__globals__["DRAWN"] = 20
    module["main"]()
    rows = capsys.readouterr().out.splitlines()
    assert len(rows) == 2
    assert all("seed 3" in row and "accuracy" in row and "MFLOPs" in row for row in rows)


def test_training_goes_on_where_it_stopped_and_shows_the_spread(monkeypatch, capsys, tmp_path):
    out = tmp_path / "results.jsonl"
    module = benchmark(
        monkeypatch, "training", "order", "--seeds", 0, 1, "--images", 96, "--out", out
    )
    small = {"DRAWN": 20, "STEPS": 2, "ORDERS": {"pr": "tiny-pr-16"}}
    module["main"].__globals__.update(small)
    module["main"]()
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(row["seed"], row["name"]) for row in rows] == [
        (seed, f"pr {order}")
        for seed in (0, 1)
        for order in ("end to end", "detached", "brick by brick")
    ]
    assert len({row["fd"] for row in rows}) == 6
    out.write_text("".join(line + "\n" for line in out.read_text().splitlines()[:-1]))
    module["main"]()
    assert len(out.read_text().splitlines()) == 6
    capsys.readouterr()
    monkeypatch.setattr(sys, "argv", ["training.py", "--table", str(out)])
    module["main"]()
    table = capsys.readouterr().out.splitlines()
    losses = [row["loss"] for row in rows if row["name"] == "pr detached"]
    assert len(table) == 5
    assert f"{sum(losses) / 2:.4f} ± {abs(losses[0] - losses[1]) / 2:.4f}" in table[3]


def test_readers(monkeypatch, capsys):
    module = benchmark(monkeypatch, "readers", "--images", 20, "--size", 16)
    module["main"]()
    rows = capsys.readouterr().out
    assert all(name in rows for name in ("PNG", "JPEG", "zip", "tar", "parquet"))


def small_model(folder, channels, classes):
    torch.manual_seed(0)
    spec = preset("tiny-pr-16", channels=channels, classes=classes)
    pipe = LegoPipeline(awaken(LegoStack(spec)).eval(), label_dropout=0.1)
    pipe.save_pretrained(folder)
    return folder


def test_plans(monkeypatch, capsys, tmp_path):
    run, out = small_model(tmp_path / "run-0", 1, 10), tmp_path / "plans.jsonl"
    for name, value in (("GRIDS", 3), ("CHECKED", 4), ("PAPER", 2)):
        monkeypatch.setattr(planning, name, value)
    few = ("--images", 20, "--measure", 2, "--steps", 3, "--out", out)
    module = benchmark(monkeypatch, "plans", run, "--dit", run, "--budgets", 0.9, 1, *few)
    module["main"]()
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    rivals = {"paper", "fewer steps", "other solver"}
    assert {row["kind"] for row in rows} == {"full", "planned", "DiT"} | rivals
    assert all(row["share"] <= 0.9 for row in rows if row["budget"] == 0.9)
    assert all(row["fd"] > 0 and row["images"] == 20 for row in rows)
    capsys.readouterr()
    monkeypatch.setattr(sys, "argv", ["plans.py", "--table", str(out)])
    module["main"]()
    assert len(capsys.readouterr().out.splitlines()) == 2 + len(rows)
    name = tmp_path / "drawn"
    words = ["--picture", run, "--measure", 2, "--steps", 2, "--budgets", 1, "--out", name]
    benchmark(monkeypatch, "plans", *words)["main"]()
    assert Image.open(name.with_suffix(".png")).width > 600


def test_canvas(monkeypatch, capsys, tmp_path):
    torch.manual_seed(0)
    spec = preset("lite-pr-32", channels=3, classes=2)
    bricks = [{"size": "image", "local": 8, "depth": 1}, {"size": 8, "local": 4, "depth": 1}]
    spec = StackSpec.from_dict(spec.to_dict() | {"width": 32, "heads": 2, "bricks": bricks})
    LegoPipeline(awaken(LegoStack(spec)).eval()).save_pretrained(tmp_path / "run")
    out = tmp_path / "canvas.jsonl"
    words = ("--crops", tmp_path / "crops", "--count", 50, "--canvases", 2, "--steps", 1)
    pictures = ("--pictures", tmp_path / "pictures", "--out", out)
    benchmark(monkeypatch, "canvas", tmp_path / "run", *words, *pictures)["main"]()
    rows = {row["way"]: row for row in map(json.loads, out.read_text().splitlines())}
    assert rows["plain squares"]["cost"] == rows["side by side, not shifted"]["cost"] == 1
    assert rows["shifted (default)"]["cost"] == 4 * 6 / (3 * 5)  # the gap is drawn too
    assert 0.9 < rows["the crops themselves"]["seams"][0] < 1.2
    assert len(list((tmp_path / "pictures").iterdir())) == 2 * 6 + 1
    assert Image.open(tmp_path / "pictures" / "run-ways.png").width > 2 * 2 * 160
    assert 0.7 < rows["the crops themselves"]["detail"] < 1.4
    capsys.readouterr()
    benchmark(monkeypatch, "canvas", "--table", out)["main"]()
    assert len(capsys.readouterr().out.splitlines()) == 2 + len(rows)


def test_bricks(monkeypatch, capsys, tmp_path):
    """Each rival has the images that its cost allows; what is there already is left out."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    costs, out = tmp_path / "costs.json", tmp_path / "rows.jsonl"
    two = {"dit": (32, [("image", 16, 1)]), "lego": (32, [("image", 16, 1), (16, 8, 1, 4)])}
    words = ("run", "glyphs", "--costs", costs, "--seconds", 1, "--seeds", 0, 1, "--out", out)
    small = {"RIVALS": two, "DRAWN": 100, "JUDGED": 8, "STEPS": 1, "BATCH": 8, "EQUAL": 1}
    for command in (("cost", "--rounds", 1, "--out", costs), words, words):
        module = benchmark(monkeypatch, "bricks", *command)
        module["main"].__globals__.update(small)
        data, rivals = sys.modules["rendered"], sys.modules["rivals"]
        monkeypatch.setattr(rivals, "RIVALS", two)
        monkeypatch.setattr(rivals, "BATCH", small["BATCH"])
        monkeypatch.setattr(data, "LEARNT", 4200)
        monkeypatch.setattr(data, "HELD_OUT", 16)
        if command[0] == "run":
            monkeypatch.setattr(sys, "argv", [*sys.argv, "--cache", str(tmp_path / "cache")])
            found = json.loads(costs.read_text())
            assert set(found) == set(two)
            assert found["dit"]["1"] > 0
            costs.write_text(json.dumps({"dit": {"1": 1 / 64}, "lego": {"1": 1 / 32}}))
        module["main"]()
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    told = [(row["seed"], row["name"], row["images"]) for row in rows]
    assert told == [(0, "dit", 64), (0, "lego", 32), (1, "dit", 64), (1, "lego", 32)]
    draw = ("draw", out, "--names", "lego", "dit", "--seconds", 1, "--cache", tmp_path / "cache")
    for command in (draw, draw):  # the second finds nothing to do
        module = benchmark(monkeypatch, "bricks", *command)
        module["main"].__globals__.update(small)
        module["main"]()
    assert len(capsys.readouterr().out.splitlines()) == 2 + 4 + 4
    for row, one in zip(rows, out.read_text().splitlines(), strict=True):
        found = json.loads(one)
        assert row.items() <= found.items()
        assert row["loss"] > 0
        assert found["fd"] > found["floor"] > 0
        assert found["fd equal"] > found["floor"]
        assert ("fd skip" in found) == (row["name"] == "lego")
    assert len(list(out.with_suffix("").glob("*.png"))) == 4
    capsys.readouterr()
    picture = tmp_path / "bricks.png"
    benchmark(monkeypatch, "bricks_table", out, "--picture", picture)["main"]()
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + 2 + 2 + 3  # losses; samples, with the floor
    assert "±" in lines[2]
    assert Image.open(picture).width > 600


def test_bricks_table_takes_each_rival_at_its_best_rate(monkeypatch):
    module = benchmark(monkeypatch, "bricks_table")

    def row(name, rate, loss, **more):
        known = {"changes": [], "images": 1000, "flops": 2e6, "low": 1, "middle": 2, "high": 3}
        return known | {"name": name, "rate": rate, "loss": loss} | more

    rows = [row("dit a", 0.1, 0.5), row("dit a", 0.2, 0.3), row("dit a", 0.2, 0.5)]
    rows += [row("lego b", 0.1, 0.2), row("dit c", 0.1, 0.1), row("dit d", 0.1, 0.9)]
    found = module["best"](rows)
    told = [(one.name, one.rows[0]["rate"], len(one.rows), one.others) for one in found]
    assert told == [
        *[("dit c", 0.1, 1, ()), ("lego b", 0.1, 1, ())],
        *[("dit a", 0.2, 2, (0.1,)), ("dit d", 0.1, 1, ())],
    ]
    few = module["few"](found, 2)
    assert [one.name for one in few] == ["dit c", "lego b", "dit a"]
    cells = module["table"](few).splitlines()[-1].split(" | ")
    assert cells[:5] == ["| dit a", "0.2 (0.1)", "2", "1,000", "2"]
    assert cells[5] == "0.4000 ± 0.1414"  # of 0.3 and 0.5, over seeds
    assert "**lego b**" in module["table"](few)
    assert module["table_of_samples"](few) == ""
    drawn = [row("dit c", 0.1, 0.1, fd=2.0, floor=1.0)]
    assert "| dit c | 1 | 2.0000 |" in module["table_of_samples"](module["best"](drawn))


def test_local_features_see_what_is_near_and_not_how_bright_it_is(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    features = benchmark(monkeypatch, "bricks")["local_features"]
    images = np.random.default_rng(0).integers(0, 200, (200, 1, 16, 16)).astype(np.uint8)
    images[1] = images[0] + 50
    images[2] = 77
    found = features(images)
    assert found.shape == (200, 16 + 32 + 64)
    assert torch.allclose(found[0], found[1], atol=1e-4)
    assert found[2].abs().max() < 1e-5
    assert not torch.allclose(found[0], found[3], atol=1e-3)


def test_scale(monkeypatch, capsys, tmp_path):
    out = tmp_path / "scale.json"
    module = benchmark(monkeypatch, "scale", "--out", out)
    small = {"MODEL": "lite-pr-16", "SIDES": (16, 32), "BATCHES": (1, 2), "ROUNDS": 1}
    small |= {"CANVASES": ((16, 16), (32, 48)), "PROCESSES": (1, 2), "IMAGES": (2, 8)}
    small |= {"DRAWS": "tiny-pr-16", "TURNS": 1}
    real = module["draw"]
    times = []

    def draw(model, processes, images):
        if not times:
            times.append(real(model, 2, 3))
        return 1 + images / (10 * processes)

    module["main"].__globals__.update(small | {"draw": draw})
    module["main"]()
    assert len(times) == 1  # one was drawn in earnest
    kept = json.loads(out.read_text())
    speeds = [(row["processes"], row["images a second"]) for row in kept["processes"]]
    assert speeds == [(1, pytest.approx(10)), (2, pytest.approx(20))]
    assert {row["side"] for row in kept["images"]} == {16, 32}
    assert {row["batch"] for row in kept["batches"]} == {1, 2}
    assert len(kept["canvases"]) == 2 * 3
    assert all(row["memory"] and row["flops"] for row in kept["canvases"])
    assert out.with_suffix(".png").is_file()
    assert kept["about"]["machine"]


def test_gpus(monkeypatch, capsys):
    benchmark(monkeypatch, "gpus", "lego-s-pg-64", "--batch", 512)["main"]()
    few, many = [line.split(" | ") for line in capsys.readouterr().out.splitlines()[2:]]
    assert (few[1], few[4], many[1], many[4]) == ("8", "64", "256", "2")
    assert float(few[5]) > 20 * float(many[5])  # compute
    assert float(few[6]) <= float(many[6])  # communication


def test_kernels(monkeypatch, capsys):
    words = ("tiny-pr-16", "--batches", 1, 2, "--rounds", 1, "--no-compile")
    benchmark(monkeypatch, "kernels", *words)["main"]()
    rows = capsys.readouterr().out.splitlines()[2:]
    assert len(rows) == 2 * 5
    assert "| tiny-pr-16 | 1 | as it is |" in rows[0]
    assert rows[0].endswith("| 1.00 |")
    benchmark(monkeypatch, "kernels", "tiny-pr-16", "--rounds", 1, "--parts", "--batches", 2)[
        "main"
    ]()
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines()[2:]]
    shapes = [(row[1], row[2], row[3]) for row in rows]
    assert shapes == [("2", "1 x 16", "2"), ("1", "4 x 4", "2"), ("1", "16 x 4", "2")]
