"""The benchmarks run; their figures are not asserted."""

import runpy
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def test_digits(monkeypatch, capsys):
    short = ["--set", "train.images=64", "--set", "train.batch=32"]
    monkeypatch.setattr(sys, "argv", ["digits.py", "tiny-pr-16", "--seeds", "3", *short])
    module = runpy.run_path(str(BENCHMARKS / "digits.py"))
    module["measure"].__globals__["DRAWN"] = 20
    module["main"]()
    rows = capsys.readouterr().out.splitlines()
    assert len(rows) == 2
    assert all("seed 3" in row and "accuracy" in row and "MFLOPs" in row for row in rows)
