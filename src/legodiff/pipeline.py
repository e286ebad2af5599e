"""What a user holds: a trained stack with everything needed to draw with it."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from legodiff import folders
from legodiff.budgets import by_plan_or_budget, cost, paper_plan
from legodiff.codec import Codec, PixelCodec
from legodiff.diffusion import Denoise
from legodiff.diffusion.canvas import OnWindow, Windows
from legodiff.diffusion.guidance import EVERYWHERE
from legodiff.diffusion.regions import Regions
from legodiff.diffusion.skipping import SkipPlan
from legodiff.drawing import Samples, draw, draw_images
from legodiff.hub import Origin, Pushed
from legodiff.labels import check_guidance, class_index, pair, whole
from legodiff.model.compiled import CompiledStack
from legodiff.model.cost import Watch
from legodiff.model.stack import LegoStack
from legodiff.plans import Curve, Point, curve_of, point_of
from legodiff.sampling import Method, Sampling


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
        origin: Origin | None = None,
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
            origin: where the weights were downloaded, if they were.
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
        self.origin = origin
        self.folder: Path | None = None
        """Where it was opened."""
        self._fingerprint: str | None = None

    @property
    def device(self) -> torch.device:
        return next(self.stack.parameters()).device

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> "LegoPipeline":
        """Moves it to a device; with ``dtype``, bfloat16 or float16, rounds its blocks, for GPUs.

        They are rounded for good, see ``LegoStack.lower``; the solver stays in float32.
        Raises ValueError for other types.
        """
        if isinstance(device, torch.dtype):
            raise ValueError(f"say what it is: pipe.to(dtype={device})")
        self.stack.to(device)
        if dtype is not None:
            opened = self.fingerprint  # plans are for the model as it was opened
            self.stack.lower(dtype)
            self._fingerprint = opened
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
        return by_plan_or_budget(full, budget, plan, self.curve, self.denoise, self.sampling, batch)

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
        on_window: OnWindow | None = None,
    ) -> Samples:
        """Draws one image for each seed by a method; the other arguments are those of calling.

        ``windows`` tells how a canvas is looked at that is larger than the training size, and
        ``regions`` which class is where on it, instead of ``labels``. ``watch`` is told of every
        evaluation: noise level, bricks, and the estimate of each; ``on_window`` of every window of
        a canvas: where it lies, and its estimate.
        """
        canvas = self.canvas(size)
        windows = windows or self.windows(canvas)
        if regions is not None and windows is None:
            windows = Windows(canvas)  # one, but seen by every class
        indices, numbers = pair(_plain(labels), _plain(seeds), self.label_index)
        self.check_guidance(method.guidance, indices if regions is None else ())
        drawn = draw_images(
            self.denoise,
            self.codec,
            self.sampling,
            method,
            indices,
            numbers,
            canvas,
            windows=windows,
            regions=regions,
            batch=batch,
            on_progress=on_progress,
            preview=preview,
            watch=watch,
            on_window=on_window,
        )
        return replace(drawn, predicted=self.predicted(method))

    def draw(
        self,
        denoise: Denoise,
        labels: Sequence[int | None],
        seeds: Sequence[int | torch.Generator],
        method: Method,
        size: tuple[int, int],
        on_step: Callable[[int, Tensor], None] | None = None,
    ) -> Tensor:
        """One batch in the model's space, (B, C, H, W); see ``legodiff.drawing.draw``."""
        spec, device = self.stack.spec, self.device
        return draw(denoise, spec, self.sampling, method, labels, seeds, size, device, on_step)

    def paper_plan(self, fraction: float, steps: int, sampler: str = "heun") -> SkipPlan:
        """The paper's rule: leave out the top brick in a fraction of the steps."""
        return paper_plan(self.stack.spec, self.sampling.sigmas(steps, sampler), fraction)

    def label_index(self, label: Any) -> int | None:
        """The class index of an index or a name, checked; None, and no class, stay None."""
        return class_index(label, self.stack.spec.classes, self.class_names)

    def to_dict(self) -> dict[str, Any]:
        """Everything but the weights."""
        whole = (self.stack.spec, self.codec, self.class_names, self.sampling)
        return folders.describe(*whole, self.label_dropout, self.run, self.origin)

    @property
    def fingerprint(self) -> str:
        """A short hash of the configuration and of the first weights of every tensor."""
        if self._fingerprint is not None:
            return self._fingerprint
        return folders.fingerprint(self.to_dict(), self.stack.state_dict())

    @property
    def precision(self) -> dict[str, str]:
        """For the metadata of pictures: what blocks were rounded to, if they were."""
        rounded = self.stack.rounded
        return {"precision": str(rounded).removeprefix("torch.")} if rounded else {}

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Writes ``model.safetensors`` and ``config.json``.

        Raises ValueError if a brick is a function, or if weights were rounded to draw.
        """
        folders.write(Path(folder), self.stack, self.to_dict(), self.curves)

    @classmethod
    def from_pretrained(
        cls,
        folder: str | os.PathLike[str],
        device: torch.device | str = "cpu",
        vae: str | os.PathLike[str] | None = None,
        weights: str = "ema",
        revision: str | None = None,
    ) -> "LegoPipeline":
        """Opens a pipeline, a run, a bare stack or a Hub id, ready to draw.

        Args:
            folder: or owner/name on the Hub, of which safetensors and JSON alone are fetched.
            vae: folder or Hub id of the VAE of a model that works on latents; by default the one
                that is recorded with the model, opened when it is first needed.
            weights: "ema" or, of a run, "raw".
            revision: branch, tag or commit of a Hub id, as in owner/name@revision. A commit pins
                what is drawn, and once it is in the cache it needs no network.

        Raises ValueError, in one line, if there is none, if it is another VAE, or if the files do
        not fit together.
        """
        path, parts = folders.read(folder, weights, revision, vae)
        pipe = cls(**parts)
        pipe.folder = path
        return pipe.to(device)

    def push_to_hub(
        self,
        hub_id: str,
        *,
        private: bool = True,
        commit_message: str | None = None,
        revision: str | None = None,
        license: str | None = None,
        samples: Samples | None = None,
    ) -> Pushed:
        """Uploads weights, configuration, plans and a model card, as one commit.

        A repository that is not there is made, ``private`` or not; so is the branch ``revision``.
        ``license`` is named as the Hub does: "apache-2.0". The card shows ``samples``, by default
        16 images that are drawn now. Returns the commit and its URL. Raises ValueError, in one
        line, if the Hub refuses.
        """
        from legodiff.publishing import push  # which in turn needs what this file defines

        return push(self, hub_id, private, commit_message, revision, license, samples)

    def check_guidance(self, guidance: float, labels: Sequence[int | None] = ()) -> None:
        """Raises ValueError if the model cannot be guided by classes, or all labels are none."""
        check_guidance(guidance, self.stack.spec.classes, self.label_dropout, labels)

    def canvas(self, size: tuple[int, int] | None) -> tuple[int, int]:
        """The canvas of the model for a picture of (height, width) pixels, checked.

        Raises ValueError if it is not two whole numbers, and, naming the nearest size, if a side is
        not a multiple of the finest brick.
        """
        if size is None:
            return self.stack.spec.image_size
        size = _plain(size)
        sides = size if isinstance(size, Sequence) and len(size) == 2 else (None, None)
        height, width = map(whole, sides)
        if height is None or width is None:
            raise ValueError(f"size is {size!r}; give (height, width), two whole numbers of pixels")
        return self.stack.spec.canvas((height, width), self.codec.factor)

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
        self,
        method: Method,
        canvas: tuple[int, int],
        windows: Windows | None = None,
        regions: Regions | None = None,
    ) -> tuple[int, int]:
        """Evaluations and FLOPs of an image by a method, counted beforehand.

        With several classes on a canvas it is about so many: see ``looks``.
        """
        windows = windows or self.windows(canvas)
        return cost(method, self.sampling, self.stack.spec, canvas, windows, regions)

    def curve(self, full: Method) -> Curve | None:
        """What ``legodiff plan`` found for a full method, if it did.

        Raises ValueError if that was for other weights.
        """
        return curve_of(self.curves, full, self.fingerprint) if self.curves else None

    def predicted(self, method: Method) -> Point | None:
        """What ``legodiff plan`` found of a method, if it did."""
        return point_of(self.curves, method, self.fingerprint) if self.curves else None


def _plain(given: Any) -> Any:
    """A tensor or an array as lists of numbers; of one number alone, that number."""
    return given.tolist() if hasattr(given, "tolist") else given
