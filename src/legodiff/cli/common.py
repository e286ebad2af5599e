"""What the commands share: the console, options, progress, and the reading of words."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

if TYPE_CHECKING:
    import torch

console = Console()
MOST_NUMBERS = 10_000_000  # seeds in one call, at most

DeviceOption = Annotated[
    str, typer.Option("--device", help="auto, cpu, cuda, mps ...", show_default=True)
]


def say(text: str) -> None:
    """Prints a line as it is: unwrapped, so that paths and commands can be copied."""
    console.print(text, soft_wrap=True, markup=False, highlight=False)


def choose_device(name: str) -> "torch.device":
    """The device of that name, tried out. Raises ValueError if it cannot be used here."""
    import torch

    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, NotImplementedError, AssertionError, ImportError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"--device {name} cannot be used here: {reason}") from error
    return device


def parse_numbers(option: str, text: str) -> list[int]:
    """ "0-3,7" to [0, 1, 2, 3, 7]. Raises ValueError, naming the option."""
    numbers: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise ValueError(f"{option} {text}: write whole numbers and ranges, such as 0-9 or 3,5")
        span = range(int(first), int(last if dash else first) + 1)
        if len(numbers) + (span.stop - span.start) > MOST_NUMBERS:
            raise ValueError(f"{option} {text}: these are too many; {MOST_NUMBERS:,} at most")
        numbers += span
    if not numbers:
        raise ValueError(f"{option} {text}: this range is empty; write the smaller number first")
    return numbers


def parse_size(text: str | None) -> tuple[int, int] | None:
    """ "600x2048" to (600, 2048), and "64" to (64, 64)."""
    if text is None:
        return None
    height, cross, width = text.lower().partition("x")
    width = width if cross else height
    if not (height.isdecimal() and width.isdecimal()):
        raise ValueError(f"--size {text}: write HEIGHTxWIDTH in pixels, such as 64x128")
    return int(height), int(width)


@contextmanager
def progress() -> Iterator[Callable[..., None]]:
    """Progress bars with an estimate of the time left; yields show(title, done, total, note)."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bars:
        tasks: dict[str, TaskID] = {}

        def show(title: str, done: float, total: float, note: str = "") -> None:
            if title not in tasks:
                tasks[title] = bars.add_task(title, total=total, note=note)
            bars.update(tasks[title], completed=min(done, total), note=note)

        yield show
