"""The command line: parses, calls, prints. Nothing heavy is imported before a command runs."""

import os
import sys
from typing import Annotated

import typer
from rich.console import Console

from legodiff.cli.bench import bench
from legodiff.cli.canvas import canvas
from legodiff.cli.data import app as data
from legodiff.cli.demo import demo
from legodiff.cli.evaluate import app as evaluate
from legodiff.cli.export import export
from legodiff.cli.import_ import import_
from legodiff.cli.info import info
from legodiff.cli.plan import plan
from legodiff.cli.push import push
from legodiff.cli.reproduce import reproduce
from legodiff.cli.sample import sample
from legodiff.cli.studio import studio
from legodiff.cli.train import train

app = typer.Typer(
    name="legodiff",
    help="Diffusion models made of stackable, skippable LEGO bricks.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
app.command(epilog="Example:  legodiff demo --seed 1")(demo)
app.command(
    epilog="Examples:  legodiff train --data photos/ --size 64 --run runs/photos\n\n"
    "legodiff train digits --run runs/digits --set train.images=20000"
)(train)
app.command(
    epilog="Example:  legodiff sample runs/demo --labels 0-9 --per-class 10 --guidance 1.5 "
    "--skip 0.5 --out samples"
)(sample)
app.command(epilog="Example:  legodiff canvas runs/scenes --size 600x2048 --wrap x --out wide.png")(
    canvas
)
app.command(epilog="Example:  legodiff plan runs/demo --steps 18 --guidance 1.5")(plan)
app.command(epilog="Example:  legodiff info runs/demo   or   legodiff info lego-s-pg-64")(info)
app.command(
    epilog="Examples:  legodiff bench lego-s-pg-64 --batch 2 --out bench.json\n\n"
    "legodiff bench runs/demo --against dit"
)(bench)
app.command(
    "import", epilog="Example:  legodiff import LEGO-L-PG-64.pkl models/lego-l --model lego_L_PG_64"
)(import_)
app.command(
    epilog="Examples:  legodiff reproduce table4 --seeds 0-2\n\n"
    "legodiff reproduce table1 --scale paper"
)(reproduce)
app.command(epilog="Example:  legodiff studio runs/demo --port 7860")(studio)
app.command(epilog="Example:  legodiff push runs/demo owner/name --license apache-2.0")(push)
app.command(epilog="Example:  legodiff export runs/demo --to onnx --budget 0.7 --out demo-onnx")(
    export
)
app.add_typer(data, name="data")
app.add_typer(evaluate, name="evaluate")

UsageError: type[Exception] = typer.BadParameter.__bases__[0]  # of whichever click typer brings


def main() -> None:
    """Runs the command line; a user's mistake becomes one line and exit code 2.

    Ctrl-C ends it with exit code 130. With LEGODIFF_DEBUG set a mistake shows its traceback.
    """
    try:
        sys.exit(app(standalone_mode=False))
    except (UsageError, ValueError, OSError, MemoryError, RuntimeError) as error:
        line = _explain(error)
        if line is None or os.environ.get("LEGODIFF_DEBUG"):
            raise
        Console(stderr=True, soft_wrap=True).print(
            f"error: {line}", style="red", markup=False, highlight=False
        )
        sys.exit(2)


def _explain(error: Exception) -> str | None:
    """The line to show for an error, or None if it is a mistake of ours and not of the user."""
    if isinstance(error, UsageError):
        return f"{error.format_message()} (--help says more)"  # type: ignore[attr-defined]
    if isinstance(error, MemoryError):
        return "not enough memory; try a smaller --batch or --size"
    if isinstance(error, RuntimeError):
        short = "out of memory" in str(error) or "allocate memory" in str(error)
        return "not enough memory; try a smaller --batch, --size or model" if short else None
    return str(error)


@app.callback(invoke_without_command=True)
def version(
    show: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False,
) -> None:
    """The options of the bare command."""
    if show:
        from legodiff import __version__

        print(__version__)
        raise typer.Exit
