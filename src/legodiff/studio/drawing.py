"""Draws what is asked for, one request at a time, and tells how far it is."""

import time
from collections import OrderedDict
from collections.abc import Callable, Generator, Hashable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from legodiff.budgets import clock
from legodiff.codec import to_pil
from legodiff.diffusion.canvas import Windows, looks
from legodiff.drawing import Samples
from legodiff.output import Order, about_canvas
from legodiff.pictures import png_bytes
from legodiff.pipeline import LegoPipeline
from legodiff.plans import Point
from legodiff.sampling import Method
from legodiff.studio.desk import Desk, Tell
from legodiff.studio.requests import Canvas, Images, Limits
from legodiff.studio.shelf import Shelf

MEMORY = 2**28  # bytes of pictures that are kept
REMEMBERED = 64  # drawings with all bricks that are not drawn again
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


@dataclass(frozen=True)
class Drawn:
    """Pictures, where they are, and what an image cost."""

    pictures: tuple[str, ...]
    size: tuple[int, int]
    """Of each, (height, width)."""
    method: Method
    nfe: int
    flops: int
    milliseconds: float
    expected: float
    """Milliseconds, from the time each set of bricks takes here."""
    point: Point | None
    """What ``legodiff plan`` found of this method."""
    regions: str | None = None
    """Where the class indices are that were painted, for ``legodiff canvas --regions``."""


@dataclass(frozen=True)
class Inside:
    """What each brick made of each noise level for one image."""

    levels: tuple[float, ...]
    """Noise levels, falling."""
    bricks: tuple[tuple[int, ...], ...]
    """The bricks that ran at each."""
    sheet: str
    """Where the estimates are: a row for each brick from the bottom, a column for each level."""
    size: tuple[int, int]
    """Of one, (height, width)."""


class Studio:
    """One model and what is drawn with it."""

    def __init__(self, pipe: LegoPipeline, name: str, limits: Limits, weights: str = "ema") -> None:
        """
        Args:
            pipe: the model.
            name: what users call it: a folder or Hub id.
            limits: the most that a request may ask for.
            weights: which of the run's weights these are, for metadata.
        """
        self.pipe, self.name, self.limits, self.weights = pipe, name, limits, weights
        self.desk = Desk(limits.waiting)
        self.shelf = Shelf(MEMORY)
        self.known: OrderedDict[Hashable, Drawn] = OrderedDict()
        self.clocks: dict[tuple[tuple[int, int], int], Callable[[Method], float]] = {}

    @property
    def run(self) -> Path | None:
        """The run folder of the model, if it has a log."""
        folder = self.pipe.folder
        return folder if folder is not None and (folder / "log.jsonl").is_file() else None

    def images(self, request: Images) -> Generator[Any, None, Drawn]:
        """Draws images; yields Waiting and Progress. Raises ValueError as ``check`` does."""
        method = request.check(self.pipe, self.limits)
        found = self._remembered(request)
        if found is not None:
            return found
        drawn = yield from self.desk.run(partial(self._images, request, method))
        if request == request.at_full_compute():
            self.known[request] = drawn
            while len(self.known) > REMEMBERED:
                self.known.popitem(last=False)
        return drawn

    def canvas(self, request: Canvas) -> Generator[Any, None, Drawn]:
        """Draws a canvas; the previews of Progress show the windows that are done."""
        method = request.check(self.pipe, self.limits)
        return (yield from self.desk.run(partial(self._canvas, request, method)))

    def inside(self, request: Images) -> Generator[Any, None, Inside]:
        """Draws the first image and keeps what each brick made of it."""
        first = replace(request, labels=(request.paired[0],), seeds=request.seeds[:1])
        method = first.check(self.pipe, self.limits)
        return (yield from self.desk.run(partial(self._inside, first, method)))

    def _remembered(self, request: Images) -> Drawn | None:
        found = self.known.pop(request, None)
        if found is None or not all(map(self.shelf.has, found.pictures)):
            return None
        self.known[request] = found  # the newest
        return found

    def _images(self, request: Images, method: Method, tell: Tell) -> Drawn:
        size = self.pipe.stack.spec.image_size
        count = len(request.seeds)
        expected = self._clock(size, count)(method)
        samples = self.pipe.render(
            method,
            request.paired,
            request.seeds,
            batch=count,
            on_progress=_Report(tell, count),
        )
        order = self._order(samples)
        names = [f"{seed:06d}.png" for seed in request.seeds]
        files = [png_bytes(image, order.about_one(at)) for at, image in enumerate(samples.images)]
        return self._drawn(samples, files, names, expected)

    def _canvas(self, request: Canvas, method: Method, tell: Tell) -> Drawn:
        pipe, windows = self.pipe, request.windows(self.pipe)
        place = pipe.canvas(request.size)
        looked = place if windows is None else windows.size
        regions = request.regions(pipe)
        count = 1 if windows is None else looks(windows, place, regions)
        each = count // (1 if regions is None else len(regions.labels))  # go together
        batch = 1 if windows is None else max(1, min(windows.batch, each))
        expected = count * self._clock(looked, batch)(method)
        report = _Report(tell, 1)
        unfinished = None
        if windows is not None:
            unfinished = _Unfinished(self, windows, place, report)
        samples = pipe.render(
            method,
            seeds=request.seed,
            size=request.size,
            on_progress=report,
            windows=windows,
            regions=regions,
            on_window=unfinished,
        )
        labels = "painted" if request.painted is not None else list(request.labels)
        about = {
            "labels": labels,
            "wrap": request.wrap,
            **about_canvas(pipe, samples, self.weights),
        }
        files = [png_bytes(samples.images[0], about)]
        drawn = self._drawn(samples, files, ["canvas.png"], expected)
        if request.painted is None:
            return drawn
        indices = Image.fromarray(request.painted.numpy().astype(np.uint8))
        return replace(drawn, regions=self.shelf.put(png_bytes(indices), "regions.png"))

    def _inside(self, request: Images, method: Method, tell: Tell) -> Inside:
        seen: OrderedDict[float, dict[int, Tensor]] = OrderedDict()

        def watch(sigma: float, bricks: tuple[int, ...], estimates: list[Tensor]) -> None:
            if sigma not in seen:  # the first evaluation at a level is with the class
                seen[sigma] = dict(zip(bricks, (one[:1].cpu() for one in estimates), strict=True))

        self.pipe.render(
            method, request.paired, request.seeds, on_progress=_Report(tell, 1), watch=watch
        )
        codec = self.pipe.codec
        decode = codec.decode if codec.ready else codec.preview
        count = len(self.pipe.stack.spec.bricks)
        levels = sorted(seen, reverse=True)
        empty = torch.zeros_like(next(iter(next(iter(seen.values())).values())))
        rows = [
            torch.cat([seen[level].get(brick, empty) for level in levels], dim=-1)
            for brick in range(count)
        ]
        sheet = to_pil(decode(torch.cat(rows, dim=-2)))[0]
        return Inside(
            tuple(levels),
            tuple(tuple(seen[level]) for level in levels),
            self.shelf.put(png_bytes(sheet), "inside.png"),
            (sheet.height // count, sheet.width // len(levels)),
        )

    def _clock(self, size: tuple[int, int], batch: int) -> Callable[[Method], float]:
        """Tells the milliseconds of an image by a method: measured once, then remembered."""
        if (size, batch) not in self.clocks:
            pipe = self.pipe
            self.clocks[size, batch] = clock(pipe.denoise, pipe.sampling, size, batch)
        return self.clocks[size, batch]

    def _order(self, samples: Samples) -> Order:
        pipe, image = self.pipe, samples.images[0]
        size = (image.height, image.width)
        count = len(samples.seeds)
        return Order(pipe, samples.method, samples.seeds, samples.labels, size, count, self.weights)

    def _drawn(
        self, samples: Samples, files: list[bytes], names: list[str], expected: float
    ) -> Drawn:
        image = samples.images[0]
        return Drawn(
            tuple(map(self.shelf.put, files, names)),
            (image.height, image.width),
            samples.method,
            samples.nfe,
            samples.flops,
            1e3 * samples.seconds,
            expected,
            samples.predicted,
        )


class _Unfinished:
    """A canvas as far as it is drawn: shown every now and then, window by window."""

    def __init__(
        self, studio: Studio, windows: Windows, place: tuple[int, int], report: "_Report"
    ) -> None:
        self.studio, self.place, self.report = studio, place, report
        whole = windows.drawn(place)
        self.image = torch.zeros(1, studio.pipe.stack.spec.channels, *whole)
        self.previews: list[str] = []
        self.shown = time.perf_counter()

    def __call__(self, at: tuple[int, int], estimate: Tensor) -> None:
        height, width = self.image.shape[2:]
        rows = (torch.arange(estimate.shape[1]) + at[0]) % height
        columns = (torch.arange(estimate.shape[2]) + at[1]) % width
        self.image[0, :, rows[:, None], columns] = estimate.cpu()
        if time.perf_counter() - self.shown < PREVIEW_SECONDS:
            return
        codec = self.studio.pipe.codec
        image = to_pil(codec.preview(self.image[..., : self.place[0], : self.place[1]]))[0]
        self.previews.append(self.studio.shelf.put(png_bytes(image), "preview.png"))
        self.report.show(self.previews[-1], (image.height, image.width))
        if len(self.previews) > PREVIEWS:
            self.studio.shelf.drop(self.previews.pop(0))
        self.shown = time.perf_counter()


class _Report:
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
