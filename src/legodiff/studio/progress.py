"""How far a drawing is, with the time that is left and the picture so far."""

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from legodiff.codec import to_pil
from legodiff.diffusion.canvas import Windows
from legodiff.pictures import png_bytes
from legodiff.pipeline import LegoPipeline
from legodiff.studio.desk import Tell
from legodiff.studio.shelf import Shelf

PREVIEW_SECONDS = 0.7  # between pictures of an unfinished canvas
PREVIEWS = 3  # of a canvas that are kept, for browsers that are late


@dataclass(frozen=True)
class Progress:
    """How far a drawing is."""

    done: float
    """Share of it."""
    seconds_left: float | None
    """None as long as nothing is done."""
    preview: str | None = None
    """Where the unfinished picture is."""
    size: tuple[int, int] | None = None
    """Of that picture, (height, width)."""


class Report:
    """Turns images done into news, with the time that is left."""

    def __init__(self, tell: Tell, count: int) -> None:
        self.tell, self.count, self.began = tell, count, time.perf_counter()
        self.done = 0.0
        self.shown: tuple[str, tuple[int, int]] | tuple[()] = ()

    def __call__(self, images: float) -> None:
        self.done = images / self.count
        self._news()

    def show(self, preview: str, size: tuple[int, int]) -> None:
        """Tells the same again, with a picture, which is shown until there is another."""
        self.shown = (preview, size)
        self._news()

    def _news(self) -> None:
        took = time.perf_counter() - self.began
        left = took * (1 / self.done - 1) if self.done else None
        self.tell(Progress(self.done, left, *self.shown))


class Unfinished:
    """A canvas as far as it is drawn: shown every now and then, window by window."""

    def __init__(
        self,
        pipe: LegoPipeline,
        shelf: Shelf,
        windows: Windows,
        place: tuple[int, int],
        report: Report,
    ) -> None:
        self.codec, self.shelf, self.place, self.report = pipe.codec, shelf, place, report
        self.image = torch.zeros(1, pipe.stack.spec.channels, *windows.drawn(place))
        self.previews: list[str] = []
        self.shown = time.perf_counter()

    def __call__(self, at: tuple[int, int], estimate: Tensor) -> None:
        height, width = self.image.shape[2:]
        rows = (torch.arange(estimate.shape[1]) + at[0]) % height
        columns = (torch.arange(estimate.shape[2]) + at[1]) % width
        self.image[0, :, rows[:, None], columns] = estimate.cpu()
        if time.perf_counter() - self.shown < PREVIEW_SECONDS:
            return
        image = to_pil(self.codec.preview(self.image[..., : self.place[0], : self.place[1]]))[0]
        self.previews.append(self.shelf.put(png_bytes(image), "preview.png"))
        self.report.show(self.previews[-1], (image.height, image.width))
        if len(self.previews) > PREVIEWS:
            self.shelf.drop(self.previews.pop(0))
        self.shown = time.perf_counter()
