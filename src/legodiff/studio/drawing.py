"""Draws what is asked for, one request at a time, and tells how far it is."""

from collections import OrderedDict
from collections.abc import Callable, Generator, Hashable, Sequence
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
from legodiff.studio.elsewhere import Opened
from legodiff.studio.progress import Report, Unfinished
from legodiff.studio.requests import Canvas, Images, Limits
from legodiff.studio.shelf import Shelf

MEMORY = 2**28  # bytes of pictures that are kept
REMEMBERED = 64  # drawings with all bricks that are not drawn again


@dataclass(frozen=True)
class Drawn:
    """Pictures, where they are, and what an image cost."""

    pictures: tuple[str, ...]
    size: tuple[int, int]
    """Of each, (height, width)."""
    method: Method
    nfe: int
    flops: int
    full_flops: int
    """Of the method with all bricks; of a canvas about so many, if bricks were skipped."""
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
    """Noise levels, falling: all, or so many as may be shown."""
    bricks: tuple[tuple[int, ...], ...]
    """The bricks that ran at each."""
    sheet: str
    """Where the estimates are: a row for each brick from the bottom, a column for each level."""
    size: tuple[int, int]
    """Of one, (height, width)."""


class Studio:
    """One model and what is drawn with it."""

    def __init__(
        self,
        pipe: LegoPipeline,
        name: str,
        limits: Limits,
        weights: str = "ema",
        vae: str | None = None,
        precision: str = "fp32",
    ) -> None:
        """
        Args:
            pipe: the model.
            name: what users call it: a folder or Hub id.
            limits: the most that a request may ask for.
            weights: which of the run's weights these are.
            vae: what was given as ``--vae``, if anything was.
            precision: what was given as ``--precision``.
        """
        self.pipe, self.name, self.limits = pipe, name, limits
        self.opened = Opened(name, weights, vae, precision)
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
            on_progress=Report(tell, count),
        )
        order = self._order(samples)
        names = [f"{seed:06d}.png" for seed in request.seeds]
        files = [png_bytes(image, order.about_one(at)) for at, image in enumerate(samples.images)]
        return self._drawn(samples, files, names, expected, request.full_flops(self.pipe))

    def _canvas(self, request: Canvas, method: Method, tell: Tell) -> Drawn:
        pipe = self.pipe
        place = pipe.canvas(request.size)
        windows = request.windows(pipe) or Windows(place)  # one, which is the canvas
        regions = request.regions(pipe)
        count = looks(windows, place, regions)
        each = count // (1 if regions is None else len(regions.labels))  # go together
        batch = max(1, min(windows.batch, each))
        expected = count * self._clock(windows.size, batch)(method)
        full, less = (
            one.flops(pipe.sampling, pipe.stack.spec, windows.size)
            for one in (request.way.full(pipe), method)
        )
        report = Report(tell, 1)
        samples = pipe.render(
            method,
            seeds=request.seed,
            size=request.size,
            on_progress=report,
            windows=windows,
            regions=regions,
            on_window=Unfinished(pipe, self.shelf, windows, place, report),
        )
        labels = "painted" if request.painted is not None else list(request.labels)
        about = {
            "labels": labels,
            "wrap": request.wrap,
            **about_canvas(pipe, samples, self.opened.weights),
        }
        files = [png_bytes(samples.images[0], about)]
        drawn = self._drawn(samples, files, ["canvas.png"], expected, samples.flops * full // less)
        if request.painted is None:
            return drawn
        # The largest index is the one that means no class.
        kind = np.uint8 if pipe.stack.spec.classes <= 255 else np.uint16
        indices = Image.fromarray(request.painted.numpy().astype(kind))
        return replace(drawn, regions=self.shelf.put(png_bytes(indices), "regions.png"))

    def _inside(self, request: Images, method: Method, tell: Tell) -> Inside:
        pipe, count = self.pipe, len(self.pipe.stack.spec.bricks)
        height, width = (side * pipe.codec.factor for side in pipe.stack.spec.image_size)
        found = sorted(set(method.levels(pipe.sampling)), reverse=True)
        levels = _spread(found, max(1, self.limits.pixels // (count * height * width)))
        seen: dict[float, dict[int, Tensor]] = {}

        def watch(sigma: float, bricks: tuple[int, ...], estimates: list[Tensor]) -> None:
            # The first evaluation at a level is with the class.
            if sigma in levels and sigma not in seen:
                seen[sigma] = dict(zip(bricks, (one[:1].cpu() for one in estimates), strict=True))

        report = Report(tell, 1)
        pipe.render(method, request.paired, request.seeds, on_progress=report, watch=watch)
        decode = pipe.codec.decode if pipe.codec.ready else pipe.codec.preview
        columns = []
        for level in levels:
            report(1.0)  # whoever leaves is not decoded for
            empty = torch.zeros_like(next(iter(seen[level].values())))
            column = torch.cat([seen[level].get(brick, empty) for brick in range(count)])
            columns.append(torch.cat(list(decode(column)), dim=-2))  # one below the other
        sheet = to_pil(torch.cat(columns, dim=-1)[None])[0]
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
        return Order(
            pipe, samples.method, samples.seeds, samples.labels, size, count, self.opened.weights
        )

    def _drawn(
        self, samples: Samples, files: list[bytes], names: list[str], expected: float, full: int
    ) -> Drawn:
        image = samples.images[0]
        return Drawn(
            tuple(map(self.shelf.put, files, names)),
            (image.height, image.width),
            samples.method,
            samples.nfe,
            samples.flops,
            full,
            1e3 * samples.seconds,
            expected,
            samples.predicted,
        )


def _spread(levels: Sequence[float], most: int) -> list[float]:
    """At most so many of the levels, evenly spaced, the last one among them."""
    last = len(levels) - 1
    chosen = np.linspace(last, 0, min(most, len(levels))).round().astype(int)
    return [levels[at] for at in chosen[::-1]]
