"""Is the run healthy? The loss on images that never change, and pictures from the same seeds."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from legodiff.data import ImageData
from legodiff.pictures import captioned, grid, loss_curve, save_png
from legodiff.pipeline import LegoPipeline
from legodiff.train.distributed import plain
from legodiff.train.learner import Objective
from legodiff.train.log import read_log
from legodiff.train.stream import Stream

PROBE = 256  # images whose loss tells how good the weights are
PICTURES, COLUMNS, STEPS = 40, 10, 12


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


def draw_pictures(pipelines: dict[str, LegoPipeline], path: Path, write: bool) -> None:
    """A grid for each pipeline from seeds that never change, a column a class, side by side."""
    panels = []
    for caption, pipeline in pipelines.items():
        classes = pipeline.stack.spec.classes
        columns = min(classes or COLUMNS, COLUMNS)
        labels = [number % columns if classes else None for number in range(PICTURES)]
        samples = pipeline(
            labels=labels, seeds=range(PICTURES), steps=STEPS, batch=PICTURES, preview=True
        )
        panels.append((caption, grid(samples.images, columns)))
    if write:
        save_png(path, captioned(panels))


def draw_curve(run: Path, names: list[str]) -> None:
    """Draws ``loss.png`` from the log, where matplotlib is installed."""
    if find_spec("matplotlib") is not None:
        loss_curve(run / "loss.png", read_log(run / "log.jsonl"), names)


def bad_positions(values: Tensor, positions: range) -> list[int]:
    """Positions of the images whose loss is not finite: ``values`` (K, B)."""
    return (np.flatnonzero(~values.isfinite().all(dim=0).cpu().numpy()) + positions.start).tolist()
