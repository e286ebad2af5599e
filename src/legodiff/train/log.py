"""What a run says of itself: ``log.jsonl``, and a status for the progress bar."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from legodiff.store import write_atomically

POINTS, LONGEST = 200, 10_000  # lines in a short run; images between lines in a long one
REPORT_SECONDS = 0.5


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

    A line has images, loss, losses (one a brick, bottom to top), learning_rate, images_per_second.
    Lines beyond ``seen`` images, left by a run that was resumed further back, are removed.
    """

    def __init__(
        self, path: Path, images: int, seen: int, on_status: Callable[[Status], None] | None
    ) -> None:
        self.path, self.on_status = path, on_status
        self.every = max(1, min(images // POINTS, LONGEST))
        self.written = self.reported_images = seen
        self.reported = self.began = time.perf_counter()
        self.losses: list[Tensor] = []
        self.rate = 0.0
        kept = [line for line in read_log(path) if line["images"] <= seen] if path.exists() else []
        write_atomically(path, "".join(json.dumps(line) + "\n" for line in kept).encode())

    def add(self, seen: int, losses: Tensor, rate: float) -> None:
        """Takes in one step: losses (K, B) of the bricks, at ``seen`` images after it."""
        self.losses.append(losses.mean(dim=1))
        self.rate = rate
        if seen - self.written >= self.every:
            self.write(seen)
        if time.perf_counter() - self.reported >= REPORT_SECONDS:
            self.report(seen, losses)

    def report(self, seen: int, losses: Tensor) -> None:
        """Tells the progress bar; done every so often, and to be done at the end."""
        now = time.perf_counter()
        if self.on_status is not None and seen > self.reported_images:
            speed = (seen - self.reported_images) / (now - self.reported)
            self.on_status(Status(seen, float(losses.mean()), speed))
        self.reported, self.reported_images = now, seen

    def write(self, seen: int) -> None:
        """Writes the line of the steps since the last one, if there were any."""
        if not self.losses:
            return
        mean = sum(self.losses[1:], self.losses[0]) / len(self.losses)
        line = {
            "images": seen,
            "loss": round(float(mean.mean()), 6),
            "losses": [round(float(loss), 6) for loss in mean],
            "learning_rate": self.rate,
            "images_per_second": round(
                (seen - self.written) / (time.perf_counter() - self.began), 1
            ),
        }
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        self.report(seen, mean)
        self.written, self.began, self.losses = seen, time.perf_counter(), []


def read_log(path: Path) -> list[dict[str, Any]]:
    """The lines of a ``log.jsonl``, a last one that was cut off left out.

    Raises ValueError if there is no such file.
    """
    if not path.is_file():
        raise ValueError(f"{path.parent} holds no {path.name}; is it a run folder?")
    lines = path.read_text().splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]
