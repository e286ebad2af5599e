"""What may be asked of a studio, within which bounds, and how to ask for the same elsewhere."""

import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from legodiff.diffusion.canvas import WRAPS, Windows
from legodiff.diffusion.regions import Regions, across, default_blend, label_map
from legodiff.diffusion.skipping import SkipPlan
from legodiff.pipeline import LegoPipeline
from legodiff.sampling import Method
from legodiff.studio.elsewhere import Opened, listed, name

Labels = tuple[int | None, ...]
MASKS = 10  # of a canvas of the largest size: each class on it takes one, a number for each pixel


@dataclass(frozen=True)
class Limits:
    """The most that one request may ask for, and how many requests may wait."""

    images: int
    steps: int
    pixels: int
    """Of all images of a request together."""
    waiting: int


@dataclass(frozen=True)
class Way:
    """How to draw."""

    steps: int = 18
    sampler: str = "heun"
    guidance: float = 1.0
    budget: float = 1.0
    """Share of the FLOPs of the method with all bricks; 1 is all of it."""

    def full(self, pipe: LegoPipeline) -> Method:
        """The method with all bricks. Raises ValueError for one that cannot be."""
        plan = SkipPlan.full(len(pipe.stack.spec.bricks))
        return Method(plan, self.steps, self.sampler, guidance=self.guidance)

    def method(self, pipe: LegoPipeline) -> Method:
        """What the budget leaves of it. Raises ValueError if that is too little."""
        return pipe.within(self.full(pipe), None if self.budget == 1 else self.budget)

    def check(self, pipe: LegoPipeline, limits: Limits, labels: Labels, pixels: int) -> Method:
        """The method. Raises ValueError, in one line, for what cannot be or is too much."""
        if not 1 <= self.steps <= limits.steps:
            raise ValueError(f"{self.steps} steps: this studio takes from 1 to {limits.steps}")
        if pixels > limits.pixels:
            raise ValueError(
                f"these are {pixels / 1e6:.3g} megapixels; this studio draws at most "
                f"{limits.pixels / 1e6:.3g} at once"
            )
        pipe.check_guidance(self.guidance, labels)
        return self.method(pipe)

    def words(self) -> list[str]:
        """For a command line."""
        words = ["--steps", self.steps, "--sampler", self.sampler, "--guidance", self.guidance]
        words += [] if self.budget == 1 else ["--budget", self.budget]
        return [f"{word:g}" if isinstance(word, float) else str(word) for word in words]


@dataclass(frozen=True)
class Images:
    """Images to draw: one for each seed, the labels in turns."""

    way: Way = Way()
    labels: Labels = (None,)
    seeds: tuple[int, ...] = (0,)

    @property
    def paired(self) -> list[int | None]:
        """A label for each seed."""
        return [self.labels[at % len(self.labels)] for at in range(len(self.seeds))]

    def check(self, pipe: LegoPipeline, limits: Limits) -> Method:
        """The method. Raises ValueError, in one line, for what cannot be or is too much."""
        if not 1 <= len(self.seeds) <= limits.images:
            raise ValueError(
                f"{len(self.seeds)} images: this studio draws from 1 to {limits.images} at once"
            )
        if twice := [seed for seed, times in Counter(self.seeds).items() if times > 1]:
            raise ValueError(f"seed {twice[0]} stands there twice; give each seed once")
        height, width = (side * pipe.codec.factor for side in pipe.stack.spec.image_size)
        return self.way.check(pipe, limits, self.labels, len(self.seeds) * height * width)

    def full_flops(self, pipe: LegoPipeline) -> int:
        """Of an image by the method with all bricks."""
        return pipe.cost(self.way.full(pipe), pipe.stack.spec.image_size)[1]

    def at_full_compute(self) -> "Images":
        """The same with all bricks in all steps."""
        return replace(self, way=replace(self.way, budget=1.0))

    def command(self, pipe: LegoPipeline, opened: Opened) -> str:
        """The command line that draws the same files."""
        words = ["legodiff", "sample", opened.name, *opened.words()]
        words += ["--labels", listed(pipe, self.labels)] if pipe.stack.spec.classes else []
        words += ["--seeds", ",".join(map(str, self.seeds)), *self.way.words()]
        return shlex.join([*words, "--out", "drawn"])

    def python(self, pipe: LegoPipeline, opened: Opened) -> str:
        """The lines of Python that draw the same pictures."""
        way = self.way
        told = [f"labels={[name(pipe, label) for label in self.paired]!r}"]
        told = told if pipe.stack.spec.classes else []
        told += [f"seeds={list(self.seeds)}", f"steps={way.steps}", f"sampler={way.sampler!r}"]
        told += [f"guidance={way.guidance:g}"]
        told += [] if way.budget == 1 else [f"budget={way.budget:g}"]
        lines = [f"out = pipe({', '.join(told)})", "out.images[0].save('drawn.png')"]
        return opened.script(["from legodiff import LegoPipeline"], lines)


@dataclass(frozen=True)
class Canvas:
    """One large picture; the labels lie on it from left to right, or where they were painted."""

    way: Way = Way()
    labels: Labels = (None,)
    seed: int = 0
    size: tuple[int, int] = (64, 64)
    """Height and width in pixels."""
    wrap: str = "none"
    painted: Tensor | None = field(default=None, compare=False)
    """int64 (h, w) of any size: class indices, instead of the labels."""

    def check(self, pipe: LegoPipeline, limits: Limits) -> Method:
        """The method. Raises ValueError, in one line, for what cannot be or is too much."""
        if self.wrap not in WRAPS:
            raise ValueError(f"wrap is {self.wrap!r}; choose from {', '.join(WRAPS)}")
        method = self.way.check(pipe, limits, (), self.size[0] * self.size[1])
        self.windows(pipe)
        self._check_masks(pipe, limits)
        return method

    def _check_masks(self, pipe: LegoPipeline, limits: Limits) -> None:
        """Raises ValueError if there are more classes than memory has masks of the canvas for."""
        place = pipe.canvas(self.size)
        most = MASKS * limits.pixels // (place[0] * place[1])
        painted = None if self.painted is None else torch.unique(self.painted).tolist()
        count = len(set(self.labels if painted is None else painted))
        if pipe.stack.spec.classes and count > most:
            raise ValueError(
                f"{count} classes on {self.size[0]}x{self.size[1]} pixels: this studio lays at "
                f"most {most} on a canvas of that size; take fewer, or a smaller canvas"
            )

    def windows(self, pipe: LegoPipeline) -> Windows | None:
        """How the model looks at it."""
        return pipe.windows(pipe.canvas(self.size), wrap=WRAPS[self.wrap])

    def regions(self, pipe: LegoPipeline) -> Regions | None:
        """Which class is where; None for a model without classes."""
        none, place = pipe.stack.spec.classes, pipe.canvas(self.size)
        if not none:
            return None
        if self.painted is not None:
            return label_map(
                self.painted, place, default_blend(pipe.stack.spec.image_size), WRAPS[self.wrap]
            )
        return across(
            _indices(pipe, self.labels),
            place,
            default_blend(pipe.stack.spec.image_size),
            WRAPS[self.wrap],
        )

    def command(self, pipe: LegoPipeline, opened: Opened) -> str:
        """The command line that draws the same file; what is painted is in ``regions.png``."""
        words = ["legodiff", "canvas", opened.name, *opened.words()]
        words += ["--size", f"{self.size[0]}x{self.size[1]}"]
        if self.painted is not None:
            words += ["--regions", "regions.png"]
        elif pipe.stack.spec.classes:
            words += ["--labels", listed(pipe, self.labels)]
        words += ["--seed", str(self.seed), "--wrap", self.wrap, *self.way.words()]
        return shlex.join([*words, "--out", "canvas.png"])

    def python(self, pipe: LegoPipeline, opened: Opened) -> str:
        """The lines of Python that draw the same picture."""
        way, place, wrap = self.way, pipe.canvas(self.size), WRAPS[self.wrap]
        plan = f"SkipPlan.full({len(pipe.stack.spec.bricks)})"
        full = f"Method({plan}, {way.steps}, {way.sampler!r}, guidance={way.guidance:g})"
        lines = [f"method = {full if way.budget == 1 else f'pipe.within({full}, {way.budget:g})'}"]
        told = [f"seeds={self.seed}", f"size={self.size}"]
        told += [f"windows=pipe.windows({place}, wrap={wrap})"]
        imports = ["from legodiff import LegoPipeline, SkipPlan"]
        if pipe.stack.spec.classes:
            kind, what = "across", str(_indices(pipe, self.labels))
            if self.painted is not None:
                imports = ["import numpy as np", "import torch", "from PIL import Image", *imports]
                lines += ["painted = torch.from_numpy(np.array(Image.open('regions.png'))).long()"]
                kind, what = "label_map", "painted"
            imports += [f"from legodiff.diffusion.regions import {kind}"]
            blend = default_blend(pipe.stack.spec.image_size)
            lines += [f"regions = {kind}({what}, {place}, blend={blend}, wrap={wrap})"]
            told += ["regions=regions"]
        imports += ["from legodiff.sampling import Method"]
        lines += [f"out = pipe.render(method, {', '.join(told)})"]
        return opened.script(imports, [*lines, "out.images[0].save('canvas.png')"])


def _indices(pipe: LegoPipeline, labels: Sequence[int | None]) -> list[int]:
    return [pipe.stack.spec.classes if label is None else label for label in labels]
