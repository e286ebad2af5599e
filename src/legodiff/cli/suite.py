"""``legodiff bench --suite``"""

import json
import shlex
import sys
from dataclasses import asdict
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.table import Table

from legodiff.cli.common import console, progress, say

if TYPE_CHECKING:
    import torch

    from legodiff.evaluate.bench import Row, Spread
    from legodiff.evaluate.suites import Case

Lines = list[list[str]]


def run_suite(
    name: str, device: "torch.device", authors: Path | None, rounds: int, out: Path | None
) -> None:
    """Measures the cases of a suite one after the other, and tells which bounds are met.

    What has been measured is written after every case. Raises ValueError for an unknown suite.
    """
    from legodiff.evaluate.bench import about, measure, product
    from legodiff.evaluate.suite_h100 import h100
    from legodiff.evaluate.suites import cpu

    suites = {"cpu": cpu, "h100": h100}
    if name not in suites:
        raise ValueError(f"--suite {name}: choose from {', '.join(suites)}")
    if name == "h100" and device.type != "cuda":
        raise ValueError(f"--suite {name} needs a GPU; this is {device.type}")
    here = about(device)
    machine = f"{here['machine']}, {here['threads']} threads, torch {here['torch']}"
    kept: list[dict[str, object]] = []
    pages, bounds = [], [["", "measured", "bound", ""]]
    for case in suites[name](device, authors):
        say(case.title)
        with progress() as show:
            entries = [product(device, case.precision), *case.entries]
            ceiling, *rows = measure(entries, rounds, device, show)
        table = _rows(rows, ceiling)
        console.print(_shown(table))
        found = _bounds(case, rows, ceiling)
        bounds += found
        kept.append(
            {
                "case": case.title,
                "product": asdict(ceiling),
                "rows": [asdict(row) for row in rows],
                "bounds": found,
            }
        )
        pages.append(f"### {case.title[0].upper()}{case.title[1:]}\n{markdown(table)}")
        if out is not None:
            _write(out, kept, [*pages, markdown(bounds), machine], here)
    console.print(_shown(bounds))
    say(f"{machine}. {rounds} rounds; median (10th to 90th percentile).")
    if out is not None:
        say(f"In {out}, and beside it the tables (.md).")


def _rows(rows: "list[Row]", ceiling: "Row") -> Lines:
    from legodiff.evaluate.bench import Spread, ratio

    lines = [["", "ms an image", "x time", "GEMM", "MB"]]
    for row in rows:
        times = ratio(row.milliseconds, rows[0].milliseconds)
        share = f"{ratio(row.speed, ceiling.speed).median:.0%}" if row.flops else ""
        room = "" if row.memory is None else figure(row.memory / 1e6)
        lines.append([row.name, spread(Spread.of(row.milliseconds)), spread(times), share, room])
    return lines


def _bounds(case: "Case", rows: "list[Row]", ceiling: "Row") -> Lines:
    from legodiff.evaluate.suites import CEILING

    found = {row.name: row for row in rows} | {CEILING: ceiling}
    return [
        [
            f"{case.title}: {bound.what}",
            _told(bound.measured(found), bound.unit),
            f"{'at least' if bound.least else 'at most'} {bound.bound:g} {bound.unit}".strip(),
            "met" if bound.met(found) else "not met",
        ]
        for bound in case.bounds
    ]


def _told(found: "Spread", unit: str) -> str:
    return "not told" if isnan(found.median) else f"{spread(found)} {unit}".strip()


def _write(
    out: Path, kept: list[dict[str, object]], pages: list[str], here: dict[str, object]
) -> None:
    from legodiff.evaluate.bench import CONVENTION
    from legodiff.store import write_atomically

    command = shlex.join(["legodiff", *sys.argv[1:]])
    values = {"about": {**here, "command": command, "convention": CONVENTION}, "cases": kept}
    write_atomically(out, json.dumps(values, indent=1).encode())
    write_atomically(out.with_suffix(".md"), ("\n\n".join(pages) + "\n").encode())


def _shown(lines: Lines) -> Table:
    header, *rest = lines
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for number, name in enumerate(header):
        table.add_column(name, justify="right" if number else "left")
    for line in rest:
        table.add_row(*line)
    return table


def spread(values: "Spread") -> str:
    """A median, and in brackets where a tenth of the values are below and above."""
    return f"{figure(values.median)} ({figure(values.low)}-{figure(values.high)})"


def figure(value: float) -> str:
    """Three digits, or all before the point."""
    return f"{value:.0f}" if value >= 100 else f"{value:#.3g}"


def markdown(table: Lines) -> str:
    """A table, its header first."""
    header, *lines = table
    return "\n".join(f"| {' | '.join(line)} |" for line in [header, ["---"] * len(header), *lines])
