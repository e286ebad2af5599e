"""``legodiff bench --suite``"""

import json
import shlex
import sys
from dataclasses import asdict
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING

from legodiff.cli.common import console, progress, say
from legodiff.cli.tables import Lines, evaluations, markdown, narrow, spread

if TYPE_CHECKING:
    import torch

    from legodiff.evaluate.bench import Candidate, Row, Spread
    from legodiff.evaluate.suites import Case


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
    for build in suites[name](device, authors):
        case = build()
        say(case.title)
        entries, failed = _that_run(case)
        with progress() as show:
            ceiling, *rows = measure(
                [product(device, case.precision), *entries], rounds, device, show
            )
        table = evaluations(rows, ceiling, case.others)
        console.print(narrow(table))
        found = _bounds(case, rows, ceiling)
        bounds += found
        kept.append(
            {
                "case": case.title,
                "product": asdict(ceiling),
                "rows": [asdict(row) for row in rows],
                "bounds": found,
                "failed": failed,
            }
        )
        pages.append(f"### {case.title[0].upper()}{case.title[1:]}\n{markdown(table)}")
        pages += [f"{name} does not run here: {reason}" for name, reason in failed.items()]
        if out is not None:
            _write(out, kept, [*pages, markdown(bounds), machine], here)
    console.print(narrow(bounds))
    say(f"{machine}. {rounds} rounds; median (10th to 90th percentile).")
    if out is not None:
        say(f"In {out}, and beside it the tables (.md).")


def _that_run(case: "Case") -> "tuple[list[Candidate], dict[str, str]]":
    """The entries of a case, and why others cannot be measured here: told, and the rest goes on."""
    entries, failed = [], {}
    for entry in case.entries:
        try:
            entry.run()
        except Exception as error:  # whatever a compiler or a driver of this machine raises
            failed[entry.name] = " ".join(str(error).split())[:200] or type(error).__name__
            say(f"{entry.name} does not run here: {failed[entry.name]}")
        else:
            entries.append(entry)
    return entries, failed


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
        for bound in case.bounds(found)
    ]


def _told(found: "Spread", unit: str) -> str:
    return "not told" if isnan(found.median) else f"{spread(found)} {unit}".strip()


def _write(
    out: Path, kept: list[dict[str, object]], pages: list[str], here: dict[str, object]
) -> None:
    from legodiff.evaluate.bench import CONVENTION
    from legodiff.store import write_atomically

    command = shlex.join(["legodiff", *sys.argv[1:]])
    pages = [f"```sh\n{command}\n```", *pages]
    values = {"about": {**here, "command": command, "convention": CONVENTION}, "cases": kept}
    write_atomically(out, json.dumps(values, indent=1).encode())
    write_atomically(out.with_suffix(".md"), ("\n\n".join(pages) + "\n").encode())
