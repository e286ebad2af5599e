"""A stack of LEGO bricks: one denoiser, of which any bricks can run.

    denoise(noisy, sigma, labels) -> clean estimate

Every brick reads the whole noisy image and the estimate of the brick before it, and refines that
estimate. Where no brick has been before (it is the first, the ones below were skipped, or its patch
was not sampled in training) it is given the best estimate without a network. So "I am the first",
skipping and patch sampling are one mechanism.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import inf, lcm
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from legodiff import store
from legodiff.model.brick import BrickSpec, LegoBrick
from legodiff.model.layers import NoiseEmbedding, initialize
from legodiff.model.patches import PatchSample
from legodiff.model.precondition import (
    OBJECTIVES,
    Coefficients,
    linear_estimate,
    to_clean,
    to_raw,
)


@dataclass(frozen=True)
class StackSpec:
    """What a stack is: everything needed to build it again. Raises ValueError for nonsense."""

    image_size: tuple[int, int]
    """(height, width) of the training images, in pixels of the model's space."""
    channels: int
    width: int
    """Embedding width d, the same in all bricks."""
    heads: int
    bricks: tuple[BrickSpec, ...]
    """From the bottom to the top."""
    classes: int = 0
    """Number of classes; label index ``classes`` means "no class". 0: unconditional."""
    mlp_ratio: float = 4.0
    refine: bool = True
    """True: a brick adds to the estimate it is given. False (the paper): it predicts anew."""
    hand_over: Literal["estimate", "raw"] = "estimate"
    """What a brick reads of the one below: its clean estimate, or its raw output (refine=False)."""
    objective: Literal["edm", "ddpm"] = "edm"
    sigma_data: float = 0.5
    """Standard deviation of the clean images in the model's space."""
    class_std: float = 0.02
    """Standard deviation of the initial class embeddings. 1.0 learns faster in short runs."""

    def __post_init__(self) -> None:
        for name in ("image_size", "bricks"):  # lists, as JSON has them, become tuples
            value = getattr(self, name)
            object.__setattr__(self, name, tuple(value) if isinstance(value, list) else value)
        _check(self)

    @property
    def step(self) -> int:
        """A canvas fits the stack if this divides both of its sides."""
        return lcm(*(brick.step for brick in self.bricks))

    def check_canvas(self, size: tuple[int, int]) -> None:
        """Raises ValueError, naming the nearest size that fits, if a brick does not divide it."""
        if min(size) < 1 or any(side % self.step for side in size):
            near = [max(1, round(side / self.step)) * self.step for side in size]
            raise ValueError(
                f"a canvas of {size[0]}x{size[1]} does not fit these bricks: "
                f"{self.step} must divide both sides; the nearest that fits is {near[0]}x{near[1]}"
            )

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "StackSpec":
        """The inverse of ``to_dict``. Raises ValueError for unknown or missing keys."""
        bricks = values.get("bricks", ())
        if isinstance(bricks, str) or not isinstance(bricks, Sequence):
            raise ValueError(f"stack: bricks is {bricks!r}; it must be a list")
        built = tuple(
            brick if isinstance(brick, BrickSpec) else store.build(BrickSpec, "brick", brick)
            for brick in bricks
        )
        return store.build(cls, "stack", {**values, "bricks": built})


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _check(spec: StackSpec) -> None:
    for name in ("channels", "width", "heads"):
        if not _is_count(getattr(spec, name)):
            raise ValueError(
                f"stack: {name} is {getattr(spec, name)!r}; it must be a whole number, 1 or more"
            )
    if spec.classes != 0 and not _is_count(spec.classes):
        raise ValueError(
            f"stack: classes is {spec.classes!r}; it must be a whole number, 0 or more"
        )
    size = spec.image_size
    if not isinstance(size, tuple) or len(size) != 2 or not all(_is_count(side) for side in size):
        raise ValueError(f"stack: image_size is {size!r}; it must be (height, width)")
    if not isinstance(spec.bricks, tuple) or not spec.bricks:
        raise ValueError("stack: bricks is empty; a stack needs at least one brick")
    if spec.width % spec.heads or spec.width % 4:
        raise ValueError(
            f"stack: width {spec.width} must be divisible by 4 and by its {spec.heads} heads"
        )
    for name in ("mlp_ratio", "sigma_data", "class_std"):
        value = getattr(spec, name)
        if not isinstance(value, int | float) or not 0 < value < inf:
            raise ValueError(f"stack: {name} is {value!r}; it must be a number above 0")
    if not isinstance(spec.refine, bool):
        raise ValueError(f"stack: refine is {spec.refine!r}; it must be true or false")
    for name, value, allowed in (
        ("objective", spec.objective, tuple(OBJECTIVES)),
        ("hand_over", spec.hand_over, ("estimate", "raw")),
    ):
        if value not in allowed:
            raise ValueError(f"stack: {name} is {value!r}; choose from {', '.join(allowed)}")
    if spec.hand_over == "raw" and spec.refine:
        raise ValueError('stack: hand_over="raw" needs refine=False (there is nothing to refine)')
    for number, brick in enumerate(spec.bricks):
        if any(side % brick.step for side in spec.image_size):
            raise ValueError(
                f"stack: brick {number} needs sides divisible by {brick.step}, "
                f"and the image is {spec.image_size[0]}x{spec.image_size[1]}"
            )


class LegoStack(nn.Module):
    """The network of a ``StackSpec``; calling it denoises."""

    def __init__(self, spec: StackSpec) -> None:
        super().__init__()
        self.spec = spec
        self.noise_embedding = NoiseEmbedding(spec.width)
        self.class_embedding = nn.Embedding(spec.classes + 1, spec.width) if spec.classes else None
        self.bricks = nn.ModuleList(
            LegoBrick(
                brick,
                # the first brick has no previous estimate to read
                channels_in=spec.channels * (1 if number == 0 else 2),
                channels_out=spec.channels,
                width=spec.width,
                heads=spec.heads,
                mlp_ratio=spec.mlp_ratio,
                trained=spec.image_size,
            )
            for number, brick in enumerate(spec.bricks)
        )
        initialize(self, spec.class_std)

    def forward(
        self,
        noisy: Tensor,
        sigma: Tensor,
        labels: Tensor | None = None,
        bricks: Sequence[int] | None = None,
    ) -> Tensor:
        """The clean estimate of the highest brick that runs.

        Args:
            noisy: (B, C, H, W), clean + sigma * noise; any H, W that the brick sizes divide.
            sigma: (B,), noise levels above 0.
            labels: (B,) class indices, ``spec.classes`` meaning none; None means none for all.
            bricks: which bricks to run, in any order; None runs all.

        Returns (B, C, H, W). Raises ValueError for shapes or bricks that cannot be.
        """
        return self.estimates(noisy, sigma, labels, bricks)[-1]

    def estimates(
        self,
        noisy: Tensor,
        sigma: Tensor,
        labels: Tensor | None = None,
        bricks: Sequence[int] | None = None,
        *,
        samples: Sequence[PatchSample | None] | None = None,
        fill: Tensor | None = None,
        detach: bool = False,
    ) -> list[Tensor]:
        """The clean estimates (B, C, H, W) of the bricks that run, from the bottom to the top.

        The last three arguments are for training. ``samples`` has for each brick of the stack the
        patches to run (None: all); elsewhere an estimate stays what the bricks below made it.
        ``fill``, an image (B, C, H, W), is what the next brick reads there instead. ``detach``
        stops gradients between bricks.
        """
        spec = self.spec
        running = self._running(bricks)
        self._check_input(noisy, sigma)
        noisy = noisy.to(torch.promote_types(noisy.dtype, torch.float32))
        sigma = sigma.to(noisy.dtype)
        at = OBJECTIVES[spec.objective](sigma, spec.sigma_data)
        condition = self._condition(at.noise, labels)

        estimate = linear_estimate(noisy, sigma, spec.sigma_data)
        missing: Tensor | None = None  # pixels that the brick before did not compute
        estimates = []
        for number in running:
            sample = samples[number] if samples is not None else None
            seen = [noisy * at.scale]
            if number > 0:
                read = estimate.detach() if detach else estimate
                if fill is not None and missing is not None:
                    read = torch.where(missing, fill, read)
                seen.append(self._hand_over(read, noisy, at))
            inputs = torch.cat(seen, dim=1).to(condition.dtype)
            raw = self.bricks[number](inputs, condition, sample).to(noisy.dtype)

            base = estimate.detach() if detach else estimate
            new = base + at.out * raw if spec.refine else to_clean(raw, noisy, at)
            missing = None if sample is None else ~sample.mask
            estimate = new if missing is None else torch.where(missing, base, new)
            estimates.append(estimate)
        return estimates

    def draw_patches(
        self,
        batch: int,
        size: tuple[int, int],
        ratio: float | Sequence[float],
        generator: torch.Generator | None = None,
        device: torch.device | None = None,
    ) -> list[PatchSample | None]:
        """Patches to train on: a fresh draw for each patch-brick, None where all of them run.

        ``ratio`` in (0, 1] is one number or one per brick; image-bricks always run whole.
        """
        ratios = [ratio] * len(self.bricks) if isinstance(ratio, int | float) else list(ratio)
        if len(ratios) != len(self.bricks) or not all(0 < r <= 1 for r in ratios):
            raise ValueError(
                f"patch ratio {ratio}: give one number in (0, 1], or one for each of the "
                f"{len(self.bricks)} bricks"
            )
        return [
            None
            if brick.is_image or share == 1
            else PatchSample.draw(batch, share, brick.patch(size), size, generator, device)
            for brick, share in zip(self.spec.bricks, ratios, strict=True)
        ]

    def loss_weight(self, sigma: Tensor) -> Tensor:
        """Weight (B, 1, 1, 1) of the squared error of a clean estimate: one on the raw output."""
        out: Tensor = OBJECTIVES[self.spec.objective](sigma, self.spec.sigma_data).out
        return out**-2

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Writes ``model.safetensors`` and ``config.json``."""
        store.write_weights(Path(folder) / store.WEIGHTS, self.state_dict())
        store.write_config(Path(folder), {"stack": self.spec.to_dict()})

    @classmethod
    def from_pretrained(
        cls, folder: str | os.PathLike[str], weights: str = store.WEIGHTS
    ) -> "LegoStack":
        """Reads the stack of a model folder, a pipeline, a run or a Hub id, in eval mode.

        Raises ValueError if the weights do not fit the configuration in every name and shape.
        """
        path = store.locate(folder)
        stack = cls(StackSpec.from_dict(store.read_config(path)["stack"]))
        stack.load_weights(store.read_weights(path / weights), str(path / weights))
        return stack.eval()

    def load_weights(self, tensors: Mapping[str, Tensor], where: str) -> None:
        """Loads every tensor or none; ``where`` names the source in the error."""
        own = self.state_dict()
        wrong = sorted(own.keys() ^ tensors.keys()) or sorted(
            name for name, tensor in tensors.items() if tensor.shape != own[name].shape
        )
        if wrong:
            raise ValueError(
                f"{where} does not fit its config.json: {len(wrong)} tensors are missing, "
                f"unknown or of another shape, first {wrong[0]}"
            )
        self.load_state_dict(dict(tensors))

    def _running(self, bricks: Sequence[int] | None) -> list[int]:
        if bricks is None:
            return list(range(len(self.bricks)))
        running = sorted(set(bricks))
        if not running or running[0] < 0 or running[-1] >= len(self.bricks):
            raise ValueError(
                f"bricks={tuple(bricks)}: choose at least one of 0 to {len(self.bricks) - 1}"
            )
        return running

    def _check_input(self, noisy: Tensor, sigma: Tensor) -> None:
        if noisy.ndim != 4 or noisy.shape[1] != self.spec.channels:
            raise ValueError(
                f"noisy has shape {tuple(noisy.shape)}; it must be (B, {self.spec.channels}, H, W)"
            )
        if sigma.shape != noisy.shape[:1]:
            raise ValueError(
                f"sigma has shape {tuple(sigma.shape)}; it must be ({noisy.shape[0]},), "
                "one noise level for each image"
            )
        self.spec.check_canvas((noisy.shape[2], noisy.shape[3]))

    def _condition(self, c_noise: Tensor, labels: Tensor | None) -> Tensor:
        """What every brick is told of the image: (B, D)."""
        condition: Tensor = self.noise_embedding(c_noise)
        if self.class_embedding is not None:
            if labels is None:
                labels = torch.full_like(c_noise, self.spec.classes, dtype=torch.int64)
            condition = condition + self.class_embedding(labels)
        return condition

    def _hand_over(self, estimate: Tensor, noisy: Tensor, at: Coefficients) -> Tensor:
        """What the next brick reads of an estimate, at about unit variance."""
        if self.spec.hand_over == "raw":
            return to_raw(estimate, noisy, at)
        return estimate / self.spec.sigma_data
