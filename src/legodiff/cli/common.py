"""What the commands share: the console, options, progress, and the reading of words."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, overload

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

from legodiff.labels import labels_of

if TYPE_CHECKING:
    import torch

    from legodiff.model.spec import StackSpec
    from legodiff.pipeline import LegoPipeline
    from legodiff.sampling import Method

console = Console()

NO_CURVES = "matplotlib is not installed; run: pip install 'legodiff[demo]'"
PRECISIONS = {"fp32": "float32", "bf16": "bfloat16"}


def parse_precision(name: str) -> "torch.dtype":
    """A dtype by its short name."""
    import torch

    if name not in PRECISIONS:
        raise ValueError(f"--precision {name}: choose from {', '.join(PRECISIONS)}")
    found: torch.dtype = getattr(torch, PRECISIONS[name])
    return found


def prepare(pipe: "LegoPipeline", precision: str, compiled: bool) -> None:
    """Makes a pipeline draw as ``--precision`` and ``--compile`` say."""
    import torch

    if (dtype := parse_precision(precision)) != torch.float32:
        pipe.to(dtype=dtype)
    if compiled:
        pipe.compile()


def open_spec(model: str) -> "tuple[StackSpec, Path | None]":
    """What a preset is, or a run, model folder or Hub id, and where that is.

    Of one on the Hub the weights are not fetched.
    """
    from legodiff import store
    from legodiff.model.presets import PRESETS
    from legodiff.model.spec import StackSpec

    if model in PRESETS and not Path(model).is_dir():
        return PRESETS[model], None
    try:
        folder, snapshot = store.find(model, needed=[store.CONFIG])
    except ValueError as error:
        near = get_close_matches(model, PRESETS, n=3)
        hint = f"; did you mean {', '.join(near)}?" if near else ""
        raise ValueError(f"{error}{hint}") from error
    if snapshot is not None:
        tell_commit(model, snapshot.repo, snapshot.commit)
    return StackSpec.from_dict(store.read_config(folder)["stack"]), folder


def full_method(
    bricks: int,
    steps: int,
    sampler: str,
    guidance: float,
    guidance_interval: str | None,
    self_guidance: float,
    option: list[str] | None,
) -> "Method":
    """The method with all bricks that these options ask for."""
    from legodiff.diffusion.skipping import SkipPlan
    from legodiff.sampling import Method

    return Method(
        plan=SkipPlan.full(bricks),
        steps=steps,
        sampler=sampler,
        options=parse_options(option or []),
        guidance=guidance,
        interval=parse_interval(guidance_interval),
        self_guidance=self_guidance,
    )


def chosen_method(
    pipe: "LegoPipeline", full: "Method", skip: float | None, budget: str | None, batch: int = 16
) -> "Method":
    """What the paper's rule of skipping, or a budget, leaves of a method with all bricks."""
    if skip is not None and budget is not None:
        raise ValueError("give --skip or --budget, not both")
    plan = None if skip is None else pipe.paper_plan(skip, full.steps, full.sampler)
    return pipe.within(full, parse_budget(budget), plan, batch)


def say(text: str) -> None:
    """Prints a line as it is: unwrapped, so that paths and commands can be copied."""
    console.print(text, soft_wrap=True, markup=False, highlight=False)


def open_pipeline(
    run: str,
    device: "torch.device",
    vae: str | None = None,
    weights: str = "ema",
    tell: Callable[[str], None] = say,
) -> "LegoPipeline":
    """The pipeline of a folder or Hub id; of one that is not pinned it tells the commit."""
    from legodiff.pipeline import LegoPipeline

    pipe = LegoPipeline.from_pretrained(run, device, vae, weights)
    if pipe.origin is not None and not Path(run).is_dir():
        tell_commit(run, pipe.origin.repo, pipe.origin.commit, tell)
    return pipe


def tell_commit(name: str, repo: str, commit: str, tell: Callable[[str], None] = say) -> None:
    """Says which commit a name of the Hub means today, unless the name says it."""
    if not name.endswith(commit):
        tell(
            f"{name} is at commit {commit}; to pin it, write {repo}@{commit}, or "
            f'from_pretrained("{repo}", revision="{commit}")'
        )


def nothing(*_: object) -> None:
    """What a process shows that does not speak for all."""


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


def check_place(out: Path, needed: int) -> None:
    """Raises ValueError if ``needed`` bytes cannot be written there: known before, not after."""
    if blocked := [path for path in (out.parent, *out.parent.parents) if path.is_file()]:
        raise ValueError(f"{blocked[0]} is a file; it must be a folder")
    if out.suffix not in (".npz", ".png") and out.is_file():
        raise ValueError(f"{out} is a file; it must be a folder")
    near = next(path for path in (out, *out.absolute().parents) if path.is_dir())
    if not os.access(near, os.W_OK):
        raise ValueError(f"{near} cannot be written to; choose another --out")
    if (free := shutil.disk_usage(near).free) < needed:
        raise ValueError(
            f"{out}: up to {needed / 1e6:,.0f} MB are to be written, and {free / 1e6:,.0f} MB are "
            "free; choose another --out"
        )


@overload
def parse_size(text: str) -> tuple[int, int]: ...


@overload
def parse_size(text: str | None) -> tuple[int, int] | None: ...


def parse_size(text: str | None) -> tuple[int, int] | None:
    """ "600x2048" to (600, 2048), and "64" to (64, 64)."""
    if text is None:
        return None
    height, cross, width = text.lower().partition("x")
    width = width if cross else height
    if not (height.isdecimal() and width.isdecimal()):
        raise ValueError(f"--size {text}: write HEIGHTxWIDTH in pixels, such as 64x128")
    return int(height), int(width)


def parse_budget(text: str | None) -> float | str | None:
    """A share as a number; a time as it is."""
    try:
        return None if text is None else float(text)
    except ValueError:
        return text


def parse_interval(text: str | None) -> tuple[float, float]:
    """ "0.2,5" to (0.2, 5.0); everywhere if there is none."""
    try:
        low, high = (0.0, inf) if text is None else map(float, text.split(","))
    except ValueError:
        raise ValueError(
            f"--guidance-interval {text}: write two noise levels, such as 0.2,5"
        ) from None
    return low, high


def parse_options(words: list[str]) -> dict[str, float]:
    """["churn=10"] to {"churn": 10.0}."""
    options = {}
    for word in words:
        name, _, value = word.partition("=")
        try:
            options[name] = float(value)
        except ValueError:
            raise ValueError(f"--option {word}: write NAME=NUMBER, such as churn=10") from None
    return options


def parse_labels(text: str | None, pipe: "LegoPipeline") -> list[int | None]:
    """Class indices of ``--labels``; by default the first 16 classes."""
    classes = pipe.stack.spec.classes
    if text is None:
        return list(range(min(classes, 16))) or [None]
    return labels_of("--labels", text, classes, pipe.class_names)


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
