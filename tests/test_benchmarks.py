"""The benchmarks run; their figures are not asserted."""

import json
import runpy
import sys
from pathlib import Path

from conftest import judges

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


def test_step(monkeypatch, capsys):
    presets = ("lite-pr-32", "lite-dit-32")
    module = benchmark(monkeypatch, "step", *presets, "--batch", 8, "--rounds", 1)
    module["main"]()
    rows = capsys.readouterr().out.splitlines()
    assert [row.split(" | ")[0] for row in rows[2:]] == ["| lite-pr-32", "| lite-dit-32"]
    assert rows[3].count("1.00") == 3  # the last is what the others are measured by


def test_readers(monkeypatch, capsys):
    module = benchmark(monkeypatch, "readers", "--images", 20, "--size", 16)
    module["main"]()
    rows = capsys.readouterr().out
    assert all(name in rows for name in ("PNG", "JPEG", "zip", "tar", "parquet"))
