"""What a run says of itself: ``log.jsonl``, and a status for the progress bar."""

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from legodiff.store import write_atomically
from legodiff.train.distributed import World
from legodiff.train.learner import Losses

POINTS, LONGEST = 200, 10_000  # lines in a short run; images between lines in a long one
REPORT_SECONDS = 0.5
BANDS = (0.1, 0.3, 1.0, 3.0, 10.0)
"""Noise levels sigma that part the bands in which losses are told: six of them."""

Sink = Callable[[dict[str, Any]], None]
"""Takes a line of the log: TensorBoard, Weights & Biases."""


@dataclass(frozen=True)
class Status:
    """What a progress bar shows."""

    images: int
    loss: float
    images_per_second: float

    def __str__(self) -> str:
        return f"{self.images_per_second:,.0f} images/s, loss {self.loss:.4f}"


class Log:
    """Averages the losses of the steps and writes a JSON line every so many images.

    A line has images, loss, losses (one a brick, bottom to top), bands (for each brick the loss in
    each noise band, parted by ``BANDS``), learning_rate, images_per_second, data_wait (share of the
    time spent waiting for images), memory_mb, and what any process noted. Lines beyond ``seen``
    images, left by a run that was resumed further back, are removed. On several processes every one
    calls it, and the first one writes.
    """

    def __init__(
        self,
        path: Path,
        images: int,
        seen: int,
        on_status: Callable[[Status], None] | None,
        *,
        bricks: int,
        world: World,
        sinks: Sequence[Sink] = (),
    ) -> None:
        self.path, self.on_status, self.world, self.sinks = path, on_status, world, sinks
        self.every = max(1, min(images // POINTS, LONGEST))
        self.seen = self.written = self.reported_images = seen
        self.reported = self.began = time.perf_counter()
        self.sums = torch.zeros(2, bricks, len(BANDS) + 1, device=world.device)
        self.edges = torch.tensor(BANDS, device=world.device)
        self.notes: dict[str, Any] = {}
        self.rate = self.waited = 0.0
        if world.leads:
            lines = read_log(path) if path.exists() else []
            kept = [line for line in lines if line["images"] <= seen]
            write_atomically(path, "".join(json.dumps(line) + "\n" for line in kept).encode())

    def add(self, seen: int, steps: Sequence[Losses], bricks: Sequence[int], rate: float) -> None:
        """Takes in one step: the losses of its micro-batches, at ``seen`` images after it.

        The line that is due then is written before the next step, so that more can be said in it.
        """
        if self.seen - self.written >= self.every:
            self.write(self.seen)
        self.seen = seen
        for losses in steps:
            band = torch.bucketize(losses.sigma, self.edges)
            values = losses.values.detach().float()
            for row, brick in enumerate(bricks):
                self.sums[0, brick].index_add_(0, band, values[row])
                self.sums[1, brick].index_add_(0, band, torch.ones_like(values[row]))
        self.rate = rate
        if time.perf_counter() - self.reported >= REPORT_SECONDS:
            self.report(seen, steps[-1].values)

    def note(self, name: str, value: Any) -> None:
        """Adds a value to the list of this name in the next line."""
        self.notes.setdefault(name, []).append(value)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time spent in here does not count as training."""
        began = time.perf_counter()
        yield
        spent = time.perf_counter() - began
        self.began += spent
        self.reported += spent

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Time spent in here is told as waiting for images."""
        began = time.perf_counter()
        yield
        self.waited += time.perf_counter() - began

    def report(self, seen: int, losses: Tensor) -> None:
        """Tells the progress bar; done every so often, and to be done at the end."""
        now = time.perf_counter()
        if self.on_status is not None and seen > self.reported_images:
            speed = (seen - self.reported_images) / (now - self.reported)
            self.on_status(Status(seen, float(losses.detach().mean()), speed))
        self.reported, self.reported_images = now, seen

    def write(self, seen: int, **more: Any) -> None:
        """Writes the line of the steps since the last one, if there were any."""
        if seen == self.written:
            return
        sums, counts = self.world.mean(self.sums).cpu().double()
        by_brick = (sums.sum(dim=1) / counts.sum(dim=1)).tolist()  # 0 / 0 is nan: it did not run
        told = [loss for loss in by_brick if loss == loss]
        told_by = self.world.gather((self.waited, self.notes))
        now, waited = time.perf_counter(), max(wait for wait, _ in told_by)
        notes: dict[str, Any] = {}
        for _, own in told_by:
            for name, values in own.items():
                notes.setdefault(name, []).extend(values)
        line = {
            "images": seen,
            "loss": _rounded(sum(told) / len(told)) if told else None,
            "losses": [_rounded(loss) for loss in by_brick],
            "bands": [[_rounded(loss) for loss in row] for row in (sums / counts).tolist()],
            "learning_rate": self.rate,
            "images_per_second": round((seen - self.written) / (now - self.began), 1),
            "data_wait": round(waited / (now - self.began), 3),
            "memory_mb": round(peak_memory(self.world.device) / 1e6),
            **notes,
            **more,
        }
        if self.world.leads:
            with self.path.open("a") as file:
                file.write(json.dumps(line) + "\n")
            for sink in self.sinks:
                sink(line)
        if told:
            self.report(seen, torch.tensor(told))
        self.written, self.began, self.waited, self.notes = seen, now, 0.0, {}
        self.sums.zero_()


def _rounded(value: float) -> float | None:
    return round(value, 6) if value == value else None


def peak_memory(device: torch.device) -> int:
    """Bytes: the most that was allocated on a GPU, or that the process has held elsewhere."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        return 0  # it does not tell
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def read_log(path: Path) -> list[dict[str, Any]]:
    """The lines of a ``log.jsonl``, a last one that was cut off left out.

    Raises ValueError if there is no such file.
    """
    if not path.is_file():
        raise ValueError(f"{path.parent} holds no {path.name}; is it a run folder?")
    lines = path.read_text().splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


def open_sinks(names: Sequence[str], run: Path, config: dict[str, Any]) -> list[Sink]:
    """Where a log goes beside its file. Raises ValueError for what is not installed."""
    return [{"tensorboard": _tensorboard, "wandb": _wandb}[name](run, config) for name in names]


def _flat(line: dict[str, Any]) -> dict[str, float]:
    """The numbers of a line by name: "losses/0", "bands/2/sigma<0.1"."""
    edges = [f"sigma<{edge:g}" for edge in BANDS] + [f"sigma>{BANDS[-1]:g}"]
    flat = {key: value for key, value in line.items() if isinstance(value, int | float)}
    flat |= {f"losses/{k}": loss for k, loss in enumerate(line["losses"]) if loss is not None}
    for brick, row in enumerate(line["bands"]):
        flat |= {
            f"bands/{brick}/{edge}": loss
            for edge, loss in zip(edges, row, strict=True)
            if loss is not None
        }
    return flat


def _tensorboard(run: Path, config: dict[str, Any]) -> Sink:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ValueError(
            "train.log asks for tensorboard, which is not installed; "
            "run: pip install 'legodiff[log]'"
        ) from error
    writer = SummaryWriter(str(run / "tensorboard"))

    def sink(line: dict[str, Any]) -> None:
        for name, value in _flat(line).items():
            writer.add_scalar(name, value, line["images"])
        writer.flush()

    return sink


def _wandb(run: Path, config: dict[str, Any]) -> Sink:
    try:
        import wandb  # type: ignore[import-not-found]
    except ImportError as error:
        raise ValueError(
            "train.log asks for wandb, which is not installed; run: pip install wandb "
            "(without a network it keeps its files in the run: WANDB_MODE=offline)"
        ) from error
    tracker = wandb.init(dir=str(run), name=run.name, config=config)
    return lambda line: tracker.log(_flat(line), step=line["images"])
