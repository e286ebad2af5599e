"""Tables and a picture of the rows that ``bricks.py`` writes.

    python benchmarks/bricks_table.py rows.jsonl --best 5 --picture bricks.png

For each data set and time of training: of every rival the rate that was best for it, means over
seeds with their standard deviation, the best loss first; then what samples are worth, of those that
were drawn. The picture has the loss over the FLOPs of an evaluation. Rows with changed settings
(``--set``) stand in a table of their own, beside the same without them.
"""

import argparse
import json
from math import ceil
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

from legodiff.pictures import new_figure, save_figure

LOSSES = ("loss", "low", "middle", "high")
DRAWN = ("fd", "fd equal", "fd skip", "fd local", "seams 4", "seams 8", "seams 16")
FLOORS = ("floor", "floor local")
COLOURS = {"lego": "C0", "dit": "C1"}
Rows = list[dict[str, Any]]


class Found(NamedTuple):
    """The runs of a rival at the rate that was best for it."""

    name: str
    rows: Rows
    others: tuple[float, ...]
    """Rates that were tried and not as good."""

    @property
    def is_stack(self) -> bool:
        return self.name.startswith("lego")

    def cells(self, columns: tuple[str, ...], digits: int = 4) -> list[str]:
        """Means over seeds, with a deviation where there are two or more."""
        found = []
        for column in columns:
            values = [row[column] for row in self.rows if column in row]
            cell = f"{mean(values):.{digits}f}" if values else ""
            found.append(cell + (f" ± {stdev(values):.{digits}f}" if len(values) > 1 else ""))
        return found


def best(rows: Rows) -> list[Found]:
    """Each rival at its best rate, the best loss first."""
    by: dict[str, dict[float, Rows]] = {}
    for row in rows:
        name = " ".join([row["name"], *row["changes"]])
        by.setdefault(name, {}).setdefault(row["rate"], []).append(row)
    found = []
    for name, rates in by.items():
        chosen = min(rates, key=lambda rate: mean(row["loss"] for row in rates[rate]))
        others = tuple(sorted(rate for rate in rates if rate != chosen))
        found.append(Found(name, rates[chosen], others))
    return sorted(found, key=lambda one: mean(row["loss"] for row in one.rows))


def few(found: list[Found], count: int) -> list[Found]:
    """The best of both sides."""
    stacks = [one for one in found if one.is_stack][:count]
    plain = [one for one in found if not one.is_stack][:count]
    return [one for one in found if one in stacks or one in plain]


def table(found: list[Found]) -> str:
    """Losses."""
    lines = [["rival", "rate", "seeds", "images", "MFLOPs", *LOSSES]]
    for one in found:
        first, rate = one.rows[0], f"{one.rows[0]['rate']:g}"
        if one.others:
            rate += f" ({', '.join(f'{other:g}' for other in one.others)})"
        cost = f"{first['flops'] / 1e6:.0f}"
        loss, *bands = one.cells(LOSSES)
        bands = [band.partition(" ")[0] for band in bands]
        told = [bold(one), rate, str(len(one.rows)), f"{first['images']:,}", cost, loss, *bands]
        lines.append(told)
    return markdown(lines)


def table_of_samples(found: list[Found]) -> str:
    """What samples are worth, of the rivals of which some were drawn."""
    drawn = [one._replace(rows=[row for row in one.rows if "fd" in row]) for one in found]
    lines = [["rival", "seeds", *DRAWN]]
    for one in drawn:
        if one.rows:
            values = [*one.cells(DRAWN[:4]), *one.cells(DRAWN[4:], 2)]
            lines.append([bold(one), str(len(one.rows)), *values])
    floors = [next((r[c] for one in drawn for r in one.rows if c in r), 0.0) for c in FLOORS]
    told = [f"{floors[0]:.4f}", "", "", f"{floors[1]:.4f}", "1", "1", "1"]
    return markdown([*lines, ["real images", "", *told]]) if len(lines) > 1 else ""


def bold(one: Found) -> str:
    """A rival by its name, a stack in bold."""
    return f"**{one.name}**" if one.is_stack else one.name


def markdown(lines: list[list[str]]) -> str:
    """A table, its first line the head."""
    head, *rest = lines
    parts = [head, ["---"] * len(head), *rest]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in parts).replace("| --- ", "|---")


def picture(groups: dict[tuple[str, float], Rows], path: Path) -> None:
    """Loss over FLOPs: stacks and DiTs, each run at its best rate a point; a line at the best."""
    lines = ceil(len(groups) / 2)
    figure = new_figure(11, 3.8 * lines)
    places = figure.subplots(lines, 2, squeeze=False).flat
    for axes, ((data, seconds), rows) in zip(places, groups.items(), strict=False):
        for side, colour in COLOURS.items():
            some = [one for one in best(rows) if one.is_stack == (side == "lego")]
            for one in some:
                at = [one.rows[0]["flops"] / 1e6] * len(one.rows)
                axes.plot(at, [row["loss"] for row in one.rows], "o", color=colour, markersize=5)
            if some:
                what = "stacks" if side == "lego" else "plain DiTs"
                label = f"{what}; best: {some[0].name}"
                level = mean(row["loss"] for row in some[0].rows)
                axes.axhline(level, color=colour, linewidth=1, label=label)
        axes.set(title=f"{data}, {seconds:g} s", xlabel="MFLOPs of an evaluation", ylabel="loss")
        axes.legend(fontsize=8)
    for axes in places:  # one may be left
        axes.set_axis_off()
    save_figure(path, figure)


def main() -> None:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rows", type=Path, nargs="+")
    parser.add_argument("--best", type=int, default=5, help="of stacks, and of plain DiTs")
    parser.add_argument("--picture", type=Path)
    options = parser.parse_args()
    groups: dict[tuple[str, float], Rows] = {}
    for path in options.rows:
        for row in map(json.loads, path.read_text().splitlines()):
            groups.setdefault((f"{row['data']} {row['side']}", row["seconds"]), []).append(row)
    plain = {key: [row for row in rows if not row["changes"]] for key, rows in groups.items()}
    for (data, seconds), rows in groups.items():
        found = best(plain[data, seconds])
        runs = [sum(r["name"].startswith(side) for r in plain[data, seconds]) for side in COLOURS]
        print(f"\n*{data}, {seconds:g} s*: {runs[0]} runs of stacks, {runs[1]} of DiTs\n")
        print(table(few(found, options.best)))
        if samples := table_of_samples(found):
            print(f"\n{samples}")
        changed = {row["name"] for row in rows if row["changes"]}
        if changed:
            print(f"\nchanged:\n\n{table(best([row for row in rows if row['name'] in changed]))}")
    if options.picture:
        picture({key: rows for key, rows in plain.items() if rows}, options.picture)


if __name__ == "__main__":
    main()
