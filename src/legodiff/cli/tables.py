"""Tables of what was measured: as text, and for a terminal."""

from collections.abc import Collection
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.table import Table

if TYPE_CHECKING:
    from legodiff.evaluate.bench import Row, Spread
    from legodiff.evaluate.contenders import Drawing

Lines = list[list[str]]
"""Rows of cells, the header first."""
WIDTHS = {"": 12, "ms an image": 13, "ms": 13, "x time": 11}  # less would break a spread


def evaluations(rows: "list[Row]", ceiling: "Row", others: Collection[str] = ()) -> Lines:
    """What an evaluation costs; ``others``: rows that the product beside them is no measure of."""
    from legodiff.evaluate.bench import Spread

    header = ["", "params", "GFLOPs", "x", "ms an image", "x time", "GEMM", "MB", "images/s"]
    lines = [
        [
            row.name,
            f"{row.parameters / 1e6:.2f} M" if row.parameters else "",
            *_cost(row, rows[0]),
            "" if row.name in others or not row.flops else _share(row, ceiling),
            "" if row.memory is None else figure(row.memory / 1e6),
            figure(1e3 / Spread.of(row.milliseconds).median),
        ]
        for row in rows
    ]
    return [header, *lines]


def _share(row: "Row", ceiling: "Row") -> str:
    from legodiff.evaluate.bench import ratio

    return f"{ratio(row.speed, ceiling.speed).median:.0%}"


def images_drawn(ways: "list[tuple[Drawing, Row]]") -> Lines:
    """What an image costs, drawn in some ways."""
    header = ["an image drawn", "GFLOPs", "x", "ms", "x time", "solver", "steps", "NFE"]
    lines = []
    for way, row in ways:
        counts = (str(way.method.steps), str(way.calls.total()))
        lines.append([row.name, *_cost(row, ways[0][1]), way.method.sampler, *counts])
    return [header, *lines]


def narrow(rows: Lines) -> Table:
    """A table for a terminal: parts below the name of the whole, no images/s."""
    header, *lines = rows
    shown = [number for number, name in enumerate(header) if name != "images/s"]
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for number in shown:
        table.add_column(
            header[number],
            justify="right" if number else "left",
            min_width=WIDTHS.get(header[number]),
        )
    above = ""
    for line in lines:
        name, _, part = line[0].partition(": ")
        if part and name != above:
            table.add_row(name)
        above = name
        table.add_row(f"  {part}" if part else name, *(line[number] for number in shown[1:]))
    return table


def _cost(row: "Row", first: "Row") -> list[str]:
    """FLOPs and milliseconds, each also as a ratio."""
    from legodiff.evaluate.bench import Spread, ratio

    times = ratio(row.milliseconds, first.milliseconds)
    return [
        figure(row.flops / 1e9) if row.flops else "",
        f"{row.flops / first.flops:.2f}" if first.flops else "",
        spread(Spread.of(row.milliseconds)),
        "1" if row is first else f"{times.median:.2f} ({times.low:.2f}-{times.high:.2f})",
    ]


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
