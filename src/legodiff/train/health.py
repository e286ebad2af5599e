"""Is the run healthy? The loss on images that never change, and pictures from the same seeds."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from legodiff.data import ImageData
from legodiff.pictures import captioned, grid, loss_figure, save_figure, save_png
from legodiff.pipeline import LegoPipeline
from legodiff.train.distributed import plain
from legodiff.train.learner import Objective
from legodiff.train.log import BANDS, read_log
from legodiff.train.stream import Stream

PROBE = 256  # images whose loss tells how good the weights are
ROWS, COLUMNS, STEPS = 4, 10, 12  # of a grid of pictures, and of the sampler


class Probe:
    """The first images of the run with their first noise: the same for every checkpoint."""

    def __init__(self, data: ImageData, seed: int, device: torch.device) -> None:
        stream = Stream(data, seed)
        items = [stream[position] for position in range(min(PROBE, len(data)))]
        self.images = torch.stack([image for image, _, _ in items])
        self.labels = torch.tensor([label for _, label, _ in items])
        self.device = device

    @torch.no_grad()
    def losses(self, objective: Objective, micro_batch: int) -> list[float]:
        """The mean loss of each brick."""
        parts = []
        bricks = range(len(objective.network.bricks))
        for start in range(0, len(self.images), micro_batch):
            positions = range(start, min(start + micro_batch, len(self.images)))
            part = slice(positions.start, positions.stop)
            images, labels = self.images[part].to(self.device), self.labels[part].to(self.device)
            parts.append(objective(images, labels, positions, bricks).values.float())
        return [round(loss, 6) for loss in plain(torch.cat(parts, dim=1)).mean(dim=1).tolist()]


def draw_pictures(
    pipelines: dict[str, LegoPipeline], path: Path, write: bool, micro_batch: int
) -> None:
    """A grid for each pipeline from seeds that never change, by class in columns, side by side.

    ``micro_batch``: images that memory is known to hold in training; no more are drawn at once.
    """
    panels = []
    for caption, pipeline in pipelines.items():
        classes = min(pipeline.stack.spec.classes, COLUMNS)
        columns = classes * (COLUMNS // classes) if classes else COLUMNS
        count = columns * ROWS
        labels = [number % classes if classes else None for number in range(count)]
        batch = min(count, micro_batch)
        samples = pipeline(
            labels=labels, seeds=range(count), steps=STEPS, batch=batch, preview=True
        )
        panels.append((caption, grid(samples.images, columns)))
    if write:
        save_png(path, captioned(panels))


def draw_curve(run: Path, names: list[str]) -> None:
    """Draws ``loss.png`` from the log, where matplotlib is installed."""
    if find_spec("matplotlib") is not None:
        figure = loss_figure(read_log(run / "log.jsonl"), names, BANDS)
        save_figure(run / "loss.png", figure)


def bad_positions(values: Tensor, positions: range) -> list[int]:
    """Positions of the images whose loss is not finite: ``values`` (K, B)."""
    return (np.flatnonzero(~values.isfinite().all(dim=0).cpu().numpy()) + positions.start).tolist()
