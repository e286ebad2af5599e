"""``legodiff demo``"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from legodiff.cli.common import choose_device, console, progress
from legodiff.cli.options import DeviceOption

if TYPE_CHECKING:
    from legodiff.demo import Report


def demo(
    seed: Annotated[int, typer.Option(help="Seed of the training run.", min=0)] = 0,
    run: Annotated[Path, typer.Option(help="Folder for model and pictures.")] = Path("runs/demo"),
    device: DeviceOption = "auto",
) -> None:
    """Train a small stack on handwritten digits, draw with it, and show how good it is.

    Takes a few minutes on two CPU cores and needs no download.
    """
    from legodiff.demo import run_demo

    chosen = choose_device(device)
    with progress() as show:
        report = run_demo(run, seed, chosen, show)
    print_report(report, run)


def print_report(report: "Report", run: Path) -> None:
    """The table of the demonstration, and what it means."""
    table = Table(title=Text(f"digits drawn by {run}, judged on {report.judged} of each kind"))
    for heading in ("bricks", "guidance", "accuracy", "FD-digits", "NFE", "MFLOPs", "ms/image"):
        table.add_column(heading, justify="left" if heading == "bricks" else "right")
    for row in report.rows:
        table.add_row(
            row.name,
            f"{row.guidance:g}",
            f"{row.accuracy:.1%}",
            f"{row.fd_digits:.2f}",
            str(row.nfe),
            f"{row.mflops:,.0f}",
            f"{row.seconds * 1e3:.1f}",
        )
    table.add_row(
        "real digits", "", f"{report.real_accuracy:.1%}", f"{report.floor:.2f}", "", "", ""
    )
    console.print(table)
    above = report.plan.bands[1:]
    where = f"at every noise level above sigma {above[0][0]:.3g}" if above else "in every step"
    console.print(
        f"A stack of {report.bricks} bricks learnt from {report.real_digits:,} real handwritten "
        f"digits: {report.train_images:,} images seen in {report.train_seconds:.0f} s on "
        f"{report.device}. It then drew {report.judged} digits for each row, from the same noise. "
        f"'bricks skipped' leaves the top brick out in {report.skipped_steps} of {report.steps} "
        f"steps, {where}, which takes {report.share:.0%} of the FLOPs. 'lowest brick' runs "
        "nothing but the first.\n"
        "accuracy: how often a classifier trained on real digits reads the class that was asked "
        "for; the last row is that classifier on real digits it never saw. FD-digits: distance to "
        "real digits in the features of a small network, lower is better; the last row is real "
        "against other real digits. Guidance makes digits clearer and less varied, at twice the "
        "evaluations. NFE: network evaluations per image. ms/image swings with the machine's "
        "load; FLOPs do not.\n"
        f"Look at {run / 'digits.png'}, {run / 'skipped.png'}, {run / 'refinement.png'} and "
        f"{run / 'loss.png'}.",
        highlight=False,
        markup=False,
    )
