"""Drawing images batch by batch: noise from seeds, windows, decoding, and what it cost."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from legodiff.codec import Codec, to_pil
from legodiff.diffusion import Denoise
from legodiff.diffusion.canvas import OnWindow, Windows, windowed
from legodiff.diffusion.regions import Regions
from legodiff.diffusion.samplers import SAMPLERS
from legodiff.diffusion.skipping import SkipPlan
from legodiff.model.compiled import CompiledStack
from legodiff.model.cost import Meter, Watch
from legodiff.model.spec import StackSpec
from legodiff.model.stack import LegoStack
from legodiff.plans import Point
from legodiff.sampling import Method, Sampling, one_or_more


@dataclass(frozen=True)
class Samples:
    """What a pipeline drew: one entry for each seed, and the cost of an image."""

    images: list[Image.Image]
    seeds: list[int]
    labels: list[int | None]
    nfe: int
    """Network evaluations per image; guidance takes two for each call of the denoiser."""
    flops: int
    """FLOPs per image of the bricks that ran, 2 x multiply-accumulates."""
    seconds: float
    """Per image, in the batches they were drawn in."""
    method: Method
    """How they were drawn."""
    predicted: Point | None = None
    """What ``legodiff plan`` found of this method: its cost, and how far off it is."""

    @property
    def plan(self) -> SkipPlan:
        return self.method.plan


def draw_images(
    stack: LegoStack | CompiledStack,
    codec: Codec,
    sampling: Sampling,
    method: Method,
    labels: Sequence[int | None],
    seeds: Sequence[int],
    canvas: tuple[int, int],
    windows: Windows | None,
    regions: Regions | None,
    batch: int,
    on_progress: Callable[[float], None] | None,
    preview: bool,
    watch: Watch | None,
    on_window: OnWindow | None = None,
) -> Samples:
    """One image of a canvas (height, width) for each seed; ``LegoPipeline.render`` has the words.

    Raises ValueError if the codec lacks its VAE, unless ``preview``, or if the model is broken.
    """
    batch = one_or_more("batch", batch)
    if not preview:
        codec.prepare()
    decode = codec.decode if codec.ready else codec.preview
    meter = Meter(stack, watch)
    denoise = method.denoiser(meter, stack.spec.classes)
    whole = canvas if windows is None else windows.drawn(canvas)
    if windows is not None:
        denoise = windowed(denoise, windows, method.levels(sampling), regions, on_window)
    device = next(stack.parameters()).device
    images: list[Image.Image] = []
    began = time.perf_counter()
    for start in range(0, len(seeds), batch):
        part = slice(start, start + batch)
        on_step = _images_done(on_progress, start, len(seeds[part]), method.steps)
        drawn = draw(
            denoise,
            stack.spec,
            sampling,
            method,
            labels[part],
            seeds[part],
            whole,
            device,
            on_step,
        )
        drawn = drawn[..., : canvas[0], : canvas[1]]
        images += to_pil(decode(finite(drawn)))
    count = len(seeds)
    return Samples(
        images,
        list(seeds),
        list(labels),
        meter.evaluations // count,
        meter.flops // count,
        (time.perf_counter() - began) / count,
        method,
    )


@torch.no_grad()
def draw(
    denoise: Denoise,
    spec: StackSpec,
    sampling: Sampling,
    method: Method,
    labels: Sequence[int | None],
    seeds: Sequence[int | torch.Generator],
    size: tuple[int, int],
    device: torch.device,
    on_step: Callable[[int, Tensor], None] | None = None,
) -> Tensor:
    """One batch in the model's space, (B, C, H, W), not decoded and not checked.

    ``denoise`` is the method's denoiser, or a wrapper of it. Noise, also what a sampler draws
    afresh, comes from each image's own seed, or from a generator in its place.
    """
    generators = [
        seed if isinstance(seed, torch.Generator) else torch.Generator("cpu").manual_seed(seed)
        for seed in seeds
    ]

    def fresh() -> Tensor:
        shape = (spec.channels, *size)
        noise = torch.stack([torch.randn(shape, generator=g, device=g.device) for g in generators])
        if device.type == "cuda" and noise.device.type == "cpu":
            noise = noise.pin_memory()  # else the copy waits for what the device is at work on
        return noise.to(device, non_blocking=True)

    chosen = None
    if spec.classes:
        chosen = torch.tensor(
            [spec.classes if label is None else label for label in labels], device=device
        )
    sampler = SAMPLERS[method.sampler]
    return sampler.sample(
        denoise,
        fresh(),
        sampling.sigmas(method.steps, method.sampler),
        chosen,
        on_step=on_step,
        **method.options,
        **({"draw": fresh} if sampler.draws else {}),
    )


def finite(drawn: Tensor) -> Tensor:
    """The same. Raises ValueError if there is a NaN or an infinity in it."""
    if not drawn.isfinite().all():
        raise ValueError("the model drew values that are not finite; is it broken?")
    return drawn


def _images_done(
    report: Callable[[float], None] | None, start: int, count: int, steps: int
) -> Callable[[int, Tensor], None] | None:
    """A sampler's step callback that reports images done, from one that wants their number."""
    if report is None:
        return None
    return lambda step, _: report(start + count * step / steps)
