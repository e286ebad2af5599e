"""What a user holds: a trained stack with everything needed to draw with it."""

import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from legodiff import store
from legodiff.budgets import cost, paper_plan, within
from legodiff.codec import Codec, LatentCodec, PixelCodec, codec_from_dict, to_pil
from legodiff.diffusion import Denoise
from legodiff.diffusion.canvas import Regions, Windows, windowed
from legodiff.diffusion.guidance import EVERYWHERE
from legodiff.diffusion.samplers import SAMPLERS
from legodiff.diffusion.skipping import SkipPlan
from legodiff.labels import class_index, pair
from legodiff.model.compiled import CompiledStack
from legodiff.model.cost import Meter, Watch
from legodiff.model.stack import LegoStack
from legodiff.plans import Curve, Point, read_curves, write_curves
from legodiff.sampling import Method, Sampling


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


class LegoPipeline:
    """Draws images: ``pipe(labels=[3, 3], seeds=[0, 1])``."""

    def __init__(
        self,
        stack: LegoStack,
        codec: Codec | None = None,
        class_names: Sequence[str] = (),
        sampling: Sampling | None = None,
        label_dropout: float = 0.0,
        run: Mapping[str, Any] | None = None,
        curves: Sequence[Curve] = (),
    ) -> None:
        """
        Args:
            stack: the denoiser.
            codec: its model space; by default plain [-1, 1].
            class_names: one name a class, or none at all.
            sampling: range of noise levels to sample over.
            label_dropout: share of training images seen without their label; 0 means that
                classifier-free guidance has nothing to work with.
            run: the configuration of the training run, kept for the record.
            curves: what ``legodiff plan`` found, for budgets.
        """
        self.stack = stack
        self.denoise: LegoStack | CompiledStack = stack
        """The callable (noisy, sigma, labels) -> clean estimate: the stack, or the compiled one."""
        self.codec: Codec = codec or PixelCodec(mean=(0.0,) * stack.spec.channels)
        self.class_names = tuple(class_names)
        if self.class_names and len(self.class_names) != stack.spec.classes:
            raise ValueError(
                f"{len(self.class_names)} class names for a model of {stack.spec.classes} classes"
            )
        self.codec.check_channels(stack.spec.channels)
        self.sampling = sampling or Sampling()
        self.label_dropout = label_dropout
        self.run = run
        self.curves = tuple(curves)

    @property
    def device(self) -> torch.device:
        return next(self.stack.parameters()).device

    def to(self, device: torch.device | str) -> "LegoPipeline":
        self.stack.to(device)
        return self

    def compile(self, **options: Any) -> "LegoPipeline":
        """From now on draws through ``torch.compile``: one graph for every set of bricks.

        The first image of each is late; the pictures are the same but for rounding. ``options``
        are those of ``torch.compile``.
        """
        self.denoise = CompiledStack(self.stack, **options)
        return self

    def __call__(
        self,
        labels: Sequence[int | str | None] | int | str | None = None,
        seeds: Sequence[int] | int | None = None,
        steps: int = 18,
        guidance: float = 1.0,
        sampler: str = "heun",
        budget: float | str | None = None,
        plan: SkipPlan | None = None,
        size: tuple[int, int] | None = None,
        *,
        guidance_interval: tuple[float, float] = EVERYWHERE,
        self_guidance: float = 1.0,
        batch: int = 16,
        on_progress: Callable[[float], None] | None = None,
        preview: bool = False,
        **options: float,
    ) -> Samples:
        """Draws one image for each seed.

        Args:
            labels: class indices or names, None for no class; one for each seed, or one for all.
            seeds: whole numbers; by default 0, 1, ... An image depends on its own seed, label and
                the arguments below, not on the rest of the batch.
            steps: steps of the sampler.
            guidance: classifier-free guidance scale; 1 is none and costs one evaluation a call.
            sampler: "heun", "euler", "dpmpp_2m", "ddpm" or "ddim".
            budget: share of the full FLOPs, at most 1, or a time for an image on this machine such
                as "50ms": the best that buys, of what ``legodiff plan`` found for these arguments.
                Without such a plan a share is kept to by the paper's rule, with as few steps
                without the top brick as it takes.
            plan: which bricks to run at which noise level; not together with ``budget``.
            size: (height, width) of the images; by default the training size. Larger ones are drawn
                in windows of that size; see ``render`` for how.
            guidance_interval: noise levels (from, to) at which there is guidance.
            self_guidance: scale of guidance by the lowest brick's own estimate; 1 is none. It costs
                nothing and needs no classes.
            batch: images drawn at a time.
            on_progress: called after each step with the images done so far, a fraction counted.
            preview: latents whose VAE is not open become false colours, instead of a search for it.
            options: of the sampler: churn, s_min, s_max and s_noise of "heun", eta of "ddim".

        Raises ValueError, in one line, for arguments that cannot be.
        """
        full = Method(
            plan=SkipPlan.full(len(self.stack.spec.bricks)),
            steps=steps,
            sampler=sampler,
            options=options,
            guidance=guidance,
            interval=guidance_interval,
            self_guidance=self_guidance,
        )
        method = self.within(full, budget, plan, batch)
        return self.render(method, labels, seeds, size, batch, on_progress, preview)

    def within(
        self,
        full: Method,
        budget: float | str | None = None,
        plan: SkipPlan | None = None,
        batch: int = 16,
    ) -> Method:
        """A method with all bricks, or what is left of it by a plan or within a budget.

        The arguments are those of calling the pipeline.
        """
        count = len(self.stack.spec.bricks)
        if budget is not None and plan is not None:
            raise ValueError("give a budget or a plan, not both")
        if plan is not None:
            if any(max(bricks) >= count for _, bricks in plan.bands):
                raise ValueError(f"the plan names a brick that this stack of {count} has not")
            return replace(full, plan=plan)
        if budget is None:
            return full
        return within(full, budget, self.curve(full), self.denoise, self.sampling, batch)

    def render(
        self,
        method: Method,
        labels: Sequence[int | str | None] | int | str | None = None,
        seeds: Sequence[int] | int | None = None,
        size: tuple[int, int] | None = None,
        batch: int = 16,
        on_progress: Callable[[float], None] | None = None,
        preview: bool = False,
        windows: Windows | None = None,
        regions: Regions | None = None,
        watch: Watch | None = None,
    ) -> Samples:
        """Draws one image for each seed by a method; the other arguments are those of calling.

        ``windows`` tells how a canvas is looked at that is larger than the training size, and
        ``regions`` which class is where on it, instead of ``labels``. ``watch`` is told of every
        evaluation: noise level, bricks, and the estimate of each.
        """
        canvas = self.canvas(size)
        windows = windows or self.windows(canvas)
        if regions is not None and windows is None:
            windows = Windows(canvas)  # one, but seen by every class
        indices, numbers = pair(labels, seeds, self.label_index)
        self.check_guidance(method.guidance, indices if regions is None else ())
        if batch < 1:
            raise ValueError(f"batch is {batch}; it must be 1 or more")
        if not preview:
            self.codec.prepare()
        decode = self.codec.decode if self.codec.ready else self.codec.preview

        meter = Meter(self.denoise, watch)
        denoise = method.denoiser(meter, self.stack.spec.classes)
        whole = canvas if windows is None else windows.drawn(canvas)
        if windows is not None:
            levels = method.levels(self.sampling)
            denoise = windowed(denoise, windows, levels, regions)
        images: list[Image.Image] = []
        began = time.perf_counter()
        for start in range(0, len(numbers), batch):
            part = slice(start, start + batch)
            on_step = _images_done(on_progress, start, len(numbers[part]), method.steps)
            drawn = self.draw(denoise, indices[part], numbers[part], method, whole, on_step)
            drawn = drawn[..., : canvas[0], : canvas[1]]
            images += to_pil(decode(finite(drawn)))
        count = len(numbers)
        return Samples(
            images,
            numbers,
            indices,
            meter.evaluations // count,
            meter.flops // count,
            (time.perf_counter() - began) / count,
            method,
            self.predicted(method),
        )

    @torch.no_grad()
    def draw(
        self,
        denoise: Denoise,
        labels: Sequence[int | None],
        seeds: Sequence[int | torch.Generator],
        method: Method,
        size: tuple[int, int],
        on_step: Callable[[int, Tensor], None] | None = None,
    ) -> Tensor:
        """One batch in the model's space, (B, C, H, W), not decoded and not checked.

        ``denoise`` is the method's denoiser, or a wrapper of it. Noise, also what a sampler draws
        afresh, comes from each image's own seed, or from a generator in its place.
        """
        spec = self.stack.spec
        generators = [
            seed if isinstance(seed, torch.Generator) else torch.Generator("cpu").manual_seed(seed)
            for seed in seeds
        ]

        def fresh() -> Tensor:
            shape = (spec.channels, *size)
            return torch.stack(
                [torch.randn(shape, generator=g, device=g.device) for g in generators]
            ).to(self.device)

        chosen = None
        if spec.classes:
            chosen = torch.tensor(
                [spec.classes if label is None else label for label in labels], device=self.device
            )
        sampler = SAMPLERS[method.sampler]
        return sampler.sample(
            denoise,
            fresh(),
            self.sampling.sigmas(method.steps, method.sampler),
            chosen,
            on_step=on_step,
            **method.options,
            **({"draw": fresh} if sampler.draws else {}),
        )

    def paper_plan(self, fraction: float, steps: int, sampler: str = "heun") -> SkipPlan:
        """The paper's rule: leave out the top brick in a fraction of the steps."""
        return paper_plan(self.stack.spec, self.sampling.sigmas(steps, sampler), fraction)

    def label_index(self, label: Any) -> int | None:
        """The class index of an index or a name, checked; None, and no class, stay None."""
        return class_index(label, self.stack.spec.classes, self.class_names)

    def to_dict(self) -> dict[str, Any]:
        """Everything but the weights."""
        values = {
            "stack": self.stack.spec.to_dict(),
            "codec": self.codec.to_dict(),
            "class_names": list(self.class_names),
            "sampling": asdict(self.sampling),
            "label_dropout": self.label_dropout,
            "run": self.run,
        }
        return dict(json.loads(json.dumps(values)))  # tuples to lists, as they will be read

    @property
    def fingerprint(self) -> str:
        """A short hash of the configuration and of the first weights of every tensor."""
        digest = hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode())
        for tensor in self.stack.state_dict().values():
            digest.update(tensor.flatten()[:64].float().cpu().numpy().tobytes())
        return digest.hexdigest()[:12]

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Writes ``model.safetensors`` and ``config.json``.

        Raises ValueError if a brick is a function, which no file can hold.
        """
        self.stack.check_saved()
        store.write_weights(Path(folder) / store.WEIGHTS, self.stack.state_dict())
        store.write_config(Path(folder), self.to_dict())
        if self.curves:
            write_curves(Path(folder), self.curves)

    @classmethod
    def from_pretrained(
        cls,
        folder: str | os.PathLike[str],
        device: torch.device | str = "cpu",
        vae: str | os.PathLike[str] | None = None,
        weights: str = "ema",
    ) -> "LegoPipeline":
        """Opens a pipeline, a run, a bare stack or a Hub id, ready to draw.

        ``vae`` is the folder or Hub id of the VAE of a model that works on latents; by default
        the one that is recorded with the model, opened when it is first needed. ``weights``: "ema"
        or, of a run, "raw". Raises ValueError if there is none, if it is another VAE, or if the
        files do not fit together.
        """
        path = store.locate(folder)
        config = store.read_config(path)
        known = {"format", "stack", "codec", "class_names", "sampling", "label_dropout", "run"}
        if unknown := config.keys() - known:
            raise ValueError(f"{path / store.CONFIG}: unknown key {min(unknown)!r}")
        names = config.get("class_names", [])
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ValueError(f"{path / store.CONFIG}: class_names must be a list of texts")
        dropout = config.get("label_dropout", 0.0)
        if not isinstance(dropout, int | float) or not 0 <= dropout <= 1:
            raise ValueError(f"{path / store.CONFIG}: label_dropout must be a number from 0 to 1")
        pipe = cls(
            LegoStack.from_pretrained(path, weights),
            codec_from_dict(config["codec"]) if "codec" in config else None,
            names,
            store.build(Sampling, "sampling", config.get("sampling", {})),
            dropout,
            config.get("run"),
            read_curves(path),
        )
        if vae is not None:
            if not isinstance(pipe.codec, LatentCodec):
                raise ValueError(f"{folder} is a model of pixels; leave out the VAE {vae}")
            pipe.codec.attach(vae)
        return pipe.to(device)

    def check_guidance(self, guidance: float, labels: Sequence[int | None] = ()) -> None:
        """Raises ValueError if the model cannot be guided by classes, or all labels are none."""
        if guidance != 1 and not self.stack.spec.classes:
            raise ValueError("guidance needs classes, and this model was trained without any")
        if guidance != 1 and not self.label_dropout:
            raise ValueError(
                "guidance needs a model trained with label dropout, and this one was not; "
                "use guidance=1"
            )
        if guidance != 1 and set(labels) == {None}:
            raise ValueError("guidance needs labels to guide towards")

    def canvas(self, size: tuple[int, int] | None) -> tuple[int, int]:
        """The canvas of the model for a picture of (height, width) pixels, checked.

        Raises ValueError, naming the nearest size, if a side is not a multiple of the finest brick.
        """
        if size is None:
            return self.stack.spec.image_size
        return self.stack.spec.canvas((int(size[0]), int(size[1])), self.codec.factor)

    def windows(self, canvas: tuple[int, int], **how: Any) -> Windows | None:
        """How a canvas larger than the training size is looked at; None if it is not larger.

        ``how`` are arguments of ``Windows``. Raises ValueError for those that cannot be.
        """
        spec = self.stack.spec
        height, width = (min(pair) for pair in zip(canvas, spec.image_size, strict=True))
        if canvas == (height, width) and not any(how.get("wrap", ())):
            return None
        spec.check_canvas((height, width))
        return Windows((height, width), **how)

    def cost(
        self, method: Method, canvas: tuple[int, int], windows: Windows | None = None
    ) -> tuple[int, int]:
        """Evaluations and FLOPs of an image by a method, with one class, counted beforehand."""
        windows = windows or self.windows(canvas)
        return cost(method, self.sampling, self.stack.spec, canvas, windows)

    def curve(self, full: Method) -> Curve | None:
        """What ``legodiff plan`` found for a full method, if it did.

        Raises ValueError if that was for other weights.
        """
        found = next((curve for curve in self.curves if curve.full.method == full), None)
        if found is not None and found.model != self.fingerprint:
            raise ValueError(
                f"the plans are for the model {found.model}, and this is {self.fingerprint}; "
                "run legodiff plan again"
            )
        return found

    def predicted(self, method: Method) -> Point | None:
        """What ``legodiff plan`` found of a method, if it did."""
        curves = [curve for curve in self.curves if curve.model == self.fingerprint]
        points = (point for curve in curves for point in curve.points)
        return next((point for point in points if point.method == method), None)


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
