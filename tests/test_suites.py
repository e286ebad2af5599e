import json
from dataclasses import replace
from functools import partial
from math import isnan

import pytest
import torch
from typer.testing import CliRunner

from legodiff import BrickSpec, StackSpec
from legodiff.cli import app
from legodiff.cli.suite import run_suite
from legodiff.evaluate import suite_h100, suites
from legodiff.evaluate.bench import Candidate, Row, Spread, measure
from legodiff.evaluate.suite_h100 import attend, elementwise, flexible, h100, products
from legodiff.evaluate.suites import CEILING, HALF, THEIRS, Bound, cpu, memory, share, time
from legodiff.model.compiled import CompiledStack, compile_blocks
from legodiff.model.presets import PRESETS

CPU = torch.device("cpu")


def spec(side, *bricks, classes=0, channels=3):
    return StackSpec((side, side), channels, 32, 2, bricks, classes)


SMALL = {
    "lego-s-pg-64": spec(64, BrickSpec(16, 8, 1), BrickSpec(32, 8, 1), BrickSpec("image", 16, 1)),
    "lego-l-pg-64": spec(64, BrickSpec(16, 8, 1), BrickSpec(32, 8, 1), BrickSpec("image", 16, 1)),
    "lego-xl-pg-32": spec(32, BrickSpec(4, 2, 1), BrickSpec(8, 4, 1), BrickSpec("image", 8, 1)),
    "dit-xl-2-32": spec(32, BrickSpec("image", 8, 3)),
}


def make_small(monkeypatch):
    """The suites at a size that takes seconds, with a backend that leaves code as it is."""
    for name, value in SMALL.items():
        monkeypatch.setitem(PRESETS, name, value)
    monkeypatch.setattr(suites, "compile_blocks", partial(compile_blocks, backend="eager"))
    monkeypatch.setattr(
        suite_h100, "CompiledStack", lambda stack, **_: CompiledStack(stack, backend="eager")
    )
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))


@pytest.fixture
def small(monkeypatch):
    make_small(monkeypatch)


def row(name, times, size=None):
    return Row(name, 0, 10**9, tuple(times), size)


def test_a_bound_is_met_or_not():
    rows = {"a": row("a", [1.0, 10.0], 300), "b": row("b", [2.0, 20.0], 400)}
    rows |= {"c": row("c", [1.0, 1.0]), CEILING: row("", [0.5, 5.0])}
    assert time("a", "b", 1.0).measured(rows) == (0.5, 0.5, 0.5)
    assert memory("a", "b", 1.0).measured(rows).median == 0.75
    assert share("a", 1.0).measured(rows).median == 0.5
    assert isnan(memory("a", "c", 1.0).measured(rows).median)
    for bound, least, met in ((0.4, True, True), (0.4, False, False), (0.6, True, False)):
        assert time("a", "b", bound, least).met(rows) == met
    assert not Bound("", (), lambda: Spread.of([float("nan")]), 1.0).met(rows)
    assert not memory("a", "c", 1.0).met(rows)


def checked(cases):
    """Measures them once and asks every bound."""
    found = {}
    for build in cases:
        case = build()
        rows = {one.name: one for one in measure(case.entries, 1, CPU)}
        assert len(rows) == len(case.entries)  # no two of one name
        rows[CEILING] = row(CEILING, [1.0])
        bounds = case.bounds(rows)
        for bound in bounds:
            assert bound.measured(rows).median > 0
        found[case.title] = (rows, [bound.what for bound in bounds])
    return found


def test_the_suite_of_the_cpu(small):
    pytest.importorskip("diffusers")
    found = checked(cpu(CPU, None))
    assert list(found) == [
        *("forward, fp32", "forward, bf16", "training step, fp32", "training step, bf16"),
    ]
    rows, bounds = found["forward, fp32"]
    assert {"ours", "ours: bricks 0+1", "DiT", "diffusers' DiT"} < set(rows)
    assert "FLOP/s: ours / matrix product" in bounds
    assert not any("authors" in bound for bound in bounds)
    rows, bounds = found["training step, fp32"]
    names = {"ours", "ours, compiled", HALF, "DiT", "diffusers' DiT", CEILING}
    assert set(rows) == names
    assert rows[HALF].flops < rows["ours"].flops
    assert rows["ours, compiled"].memory is None
    assert "memory: ours / DiT" in bounds


def test_the_authors_stand_beside_ours_in_every_case(small, monkeypatch):
    pytest.importorskip("diffusers")
    monkeypatch.setattr(
        suites, "beside_authors", lambda own, _: (own, replace(own, name="lego_S", parts=()))
    )
    cases = [build() for build in cpu(CPU, "a path")]
    for case, least in zip(cases, (2.0, 3.0, 1.8, 2.5), strict=True):
        assert case.entries[-1].name == THEIRS
        names = {CEILING, *(one.name for one in case.entries)}
        ours = [one for one in case.bounds(dict.fromkeys(names)) if THEIRS in one.rows]
        assert {(one.bound, one.least) for one in ours} == {(least, True)}
        assert case.others == ([] if "fp32" in case.title else [THEIRS])


def test_the_time_of_a_drawing_is_that_of_its_evaluations(small):
    """Of 35, 18 are without the top brick: 17 * 2 + 18 * 1 ms, beside 35 * 4 ms."""
    case = suite_h100.sampling(CPU)
    names = ("lego-xl-pg-32", "lego-xl-pg-32: bricks 0+1", "dit-xl-2-32")
    rows = {name: row(name, [float(ms)]) for name, ms in zip(names, (2, 1, 4), strict=True)}
    (bound,) = case.bounds(rows)
    assert bound.measured(rows).median == pytest.approx((17 * 2 + 18 * 1) / (35 * 4))
    assert bound.met(rows)


def test_what_does_not_run_here_is_told_and_the_rest_goes_on(monkeypatch, capsys, tmp_path):
    def broken():
        raise RuntimeError("no kernel\nfor this")

    entries = [Candidate(name, run, 1, 0, 0) for name, run in (("a", lambda: 0), ("b", broken))]
    held_to = (time("a", "b", 1.0), time("a", "a", 1.0))
    case = suites.Case("tried", CPU, torch.float32, entries, held_to)
    monkeypatch.setattr(suites, "cpu", lambda *_: [lambda: case])
    run_suite("cpu", CPU, None, 1, tmp_path / "out.json")
    assert "b does not run here: no kernel for this" in capsys.readouterr().out
    (kept,) = json.loads((tmp_path / "out.json").read_text())["cases"]
    assert kept["failed"] == {"b": "no kernel for this"}
    assert [one["name"] for one in kept["rows"]] == ["a"]
    assert [line[0] for line in kept["bounds"]] == ["tried: time: a / a"]


def test_the_suite_of_the_gpu_as_far_as_a_cpu_runs_it(small, monkeypatch):
    monkeypatch.setattr(suite_h100, "SHAPES", ((32, 2, 8),))
    monkeypatch.setattr(suite_h100, "IMAGES", 4)
    found = checked(h100(CPU, None))
    assert "one block of a 4x4 brick" in found
    rows, bounds = found["sampling, 4 latents of 32x32"]
    assert len(bounds) == 2
    assert {"lego-xl-pg-32, compiled", "lego-xl-pg-32: bricks 0+1", "dit-xl-2-32"} < set(rows)
    assert set(found["one image with guidance"][0]) == {
        *("eager", "compiled", "CUDA graphs", CEILING),
    }
    attention = [rows for title, (rows, _) in found.items() if title.startswith("attention")]
    assert len(attention) == 2
    assert len(attention[0]) == 6


def test_ways_to_attend_agree(small):
    qkv = torch.randn(4, 16, 4, 3, 2, 8)  # two tiles
    expected = attend(qkv)
    for way in (products, elementwise, flexible(qkv)):
        assert torch.allclose(way(qkv), expected, atol=1e-6)


def test_on_the_command_line(small, tmp_path):
    pytest.importorskip("diffusers")
    out = tmp_path / "suite.json"
    result = CliRunner().invoke(
        app, ["bench", "--suite", "cpu", "--rounds", "1", "--out", str(out)]
    )
    assert result.exit_code == 0, result.output
    kept = json.loads(out.read_text())
    assert kept["cases"][0]["case"] == "forward, fp32"
    assert kept["about"]["command"]
    page = out.with_suffix(".md").read_text()
    assert "### Training step, bf16" in page
    assert "FLOP/s: ours / matrix product" in page
    assert "at most 0.55" in page
    told = [line[-1] for case in kept["cases"] for line in case["bounds"]]
    assert len(told) == 4 + 1 + 7  # and none of them for training in bf16
    assert set(told) <= {"met", "not met"}


def test_a_suite_says_itself_what_is_measured(call):
    code, _, err = call("bench", "tiny-pr-16", "--suite", "cpu", "--batch", "4")
    assert code == 2
    assert err.strip().endswith("leave out models, batch")
    code, _, err = call("bench", "--suite", "cpu", "--device", "cuda")
    assert (code, err) == (2, "error: --suite cpu --device cuda: it is measured on the CPU\n")


@pytest.mark.parametrize(
    ("name", "message"), [("h100", "needs a GPU; this is cpu"), ("tpu", "choose from cpu, h100")]
)
def test_a_suite_that_cannot_be_is_one_line(name, message):
    with pytest.raises(ValueError, match=message):
        run_suite(name, CPU, None, 1, None)
