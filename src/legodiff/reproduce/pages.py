"""Pages: rows as JSON and CSV, a table in Markdown, a figure as PNG."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from legodiff.store import write_atomically

Rows = Sequence[Mapping[str, Any]]


def write_rows(out: Path, rows: Rows) -> None:
    """``rows.json`` and ``rows.csv``: everything that was measured."""
    write_atomically(out / "rows.json", json.dumps(list(rows), indent=2).encode() + b"\n")
    names = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, names)
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(out / "rows.csv", text.getvalue().encode())


def write_page(out: Path, title: str, parts: Sequence[str]) -> str:
    """``page.md``: what the experiment gave, in the paper's form. Returns the text."""
    text = f"# {title}\n\n" + "\n\n".join(part for part in parts if part) + "\n"
    write_atomically(out / "page.md", text.encode())
    return text


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def spread(values: Sequence[float], digits: int = 3) -> str:
    """Mean ± standard deviation over the seeds; the number alone of a single one."""
    mean = f"{np.mean(values):.{digits}g}"
    return mean if len(values) == 1 else f"{mean} ± {np.std(values):.1g}"


def groups(rows: Rows, *keys: str) -> dict[tuple[Any, ...], list[Mapping[str, Any]]]:
    """Rows by the values of some keys, in their order: those of all seeds together."""
    found: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        found.setdefault(tuple(row[key] for key in keys), []).append(row)
    return found
