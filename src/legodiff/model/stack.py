"""A stack of LEGO bricks: one denoiser, of which any bricks can run.

    denoise(noisy, sigma, labels) -> clean estimate

Every brick reads the whole noisy image and the estimate of the brick before it, and refines that
estimate. Where no brick has been before (it is the first, the ones below were skipped, or its patch
was not sampled in training) it is given the best estimate without a network. So "I am the first",
skipping and patch sampling are one mechanism.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from legodiff import store
from legodiff.model.brick import LegoBrick
from legodiff.model.foreign import ForeignBrick
from legodiff.model.layers import NoiseEmbedding, initialize
from legodiff.model.patches import PatchSample
from legodiff.model.precondition import (
    OBJECTIVES,
    Coefficients,
    linear_estimate,
    to_clean,
    to_raw,
)
from legodiff.model.spec import BrickSpec, ForeignSpec, StackSpec


class LegoStack(nn.Module):
    """The network of a ``StackSpec``; calling it denoises."""

    def __init__(self, spec: StackSpec) -> None:
        super().__init__()
        self.spec = spec
        self.rounded: torch.dtype | None = None
        """What the weights of the blocks were rounded to, to draw."""
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
            if isinstance(brick, BrickSpec)
            else nn.Identity()
            for number, brick in enumerate(spec.bricks)
        )
        initialize(self, spec.class_std)
        for number, brick in enumerate(spec.bricks):  # after that: its weights are its own
            if isinstance(brick, ForeignSpec):
                self.bricks[number] = ForeignBrick(brick, spec.channels)

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
            sigma: (B,), noise levels above 0, on any device.
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
        self._check_input(noisy, sigma, labels)
        noisy = noisy.to(torch.promote_types(noisy.dtype, torch.float32))
        sigma = sigma.to(noisy.device, noisy.dtype, non_blocking=True)
        at = OBJECTIVES[spec.objective](sigma, spec.sigma_data)
        condition = self._condition(at.noise, labels)

        estimate = linear_estimate(noisy, sigma, spec.sigma_data)
        missing: Tensor | None = None  # pixels that the brick before did not compute
        estimates = []
        for number in running:
            if isinstance(brick := self.bricks[number], ForeignBrick):
                estimate = brick(noisy, sigma, labels)
                estimates.append(estimate)
                continue
            sample = samples[number] if samples is not None else None
            seen = [noisy * at.scale]
            if number > 0:
                read = estimate.detach() if detach else estimate
                if fill is not None and missing is not None:
                    read = torch.where(missing, fill, read)
                seen.append(self._hand_over(read, noisy, at))
            inputs = torch.cat(seen, dim=1).to(condition.dtype)
            raw = brick(inputs, condition, sample).to(noisy.dtype)

            base = estimate.detach() if detach else estimate
            new = base + at.out * raw if spec.refine else to_clean(raw, noisy, at)
            missing = None if sample is None else ~sample.mask
            estimate = new if missing is None else torch.where(missing, base, new)
            estimates.append(estimate)
        return estimates

    def loss_weight(self, sigma: Tensor) -> Tensor:
        """Weight (B, 1, 1, 1) of the squared error of a clean estimate: one on the raw output."""
        out: Tensor = OBJECTIVES[self.spec.objective](sigma, self.spec.sigma_data).out
        return out**-2

    def lower(self, dtype: torch.dtype) -> "LegoStack":
        """Rounds the weights of all blocks to bfloat16 or float16, to draw on GPUs in less room.

        Embeddings and output layers, which cost next to nothing, stay as they are, and estimates
        are float32. A rounded stack is not saved. Bricks of other kinds are left alone. Raises
        ValueError for other types, and if they were rounded to another one before.
        """
        if dtype not in (torch.bfloat16, torch.float16) or self.rounded not in (None, dtype):
            before = f" of {self.rounded}" if self.rounded else ""
            raise ValueError(
                f"blocks{before} cannot be rounded to {dtype}; open the model anew, or "
                "choose torch.bfloat16 or torch.float16"
            )
        self.rounded = dtype
        for brick in self.bricks:
            if isinstance(brick, LegoBrick):
                brick.blocks.to(dtype)
        return self

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Writes ``model.safetensors`` and ``config.json``.

        Raises ValueError if a brick is a function, or if weights were rounded to draw.
        """
        self.check_saved()
        store.write_weights(Path(folder) / store.WEIGHTS, self.state_dict())
        store.write_config(Path(folder), {"stack": self.spec.to_dict()})

    @classmethod
    def from_pretrained(
        cls,
        folder: str | os.PathLike[str],
        weights: str = "ema",
        revision: str | None = None,
    ) -> "LegoStack":
        """Reads the stack of a model folder, a pipeline, a run or a Hub id, in eval mode.

        ``weights``: "ema", the average that a run is judged by, or "raw", the last ones.
        ``revision``: branch, tag or commit of a Hub id. Raises ValueError if the weights do not fit
        the configuration in every name and shape.
        """
        file = store.weights_file(weights)
        path = store.locate(folder, revision, (store.CONFIG, file))
        spec = StackSpec.from_dict(store.read_config(path)["stack"])
        foreign = any(isinstance(brick, ForeignSpec) for brick in spec.bricks)
        # Nothing is allocated before the file is known to fit; but networks of others may compute
        # what is not in it as they are built.
        with torch.device("cpu" if foreign else "meta"):
            stack = cls(spec)
        stack.load_weights(store.read_weights(path / file), str(path / file))
        return stack.eval()

    def check_saved(self) -> None:
        """Raises ValueError if a brick is a function, or if weights were rounded to draw."""
        if self.rounded is not None:
            raise ValueError("weights were rounded to draw; save the model as it was opened")
        for brick in self.spec.bricks:
            if isinstance(brick, ForeignSpec) and brick.network == "callable":
                raise ValueError("a brick that is a function cannot be saved, only used")

    def load_weights(self, tensors: Mapping[str, Tensor], where: str) -> None:
        """Loads every tensor or none; ``where`` names the source in the error."""
        own = self.state_dict()
        kinds = {tensor.dtype for tensor in tensors.values()}
        if len(kinds) > 1 or not kinds <= {torch.float32, torch.float16, torch.bfloat16}:
            raise ValueError(f"{where} holds {', '.join(map(str, kinds))}; expected one float type")
        wrong = sorted(own.keys() ^ tensors.keys()) or sorted(
            name for name, tensor in tensors.items() if tensor.shape != own[name].shape
        )
        if wrong:
            raise ValueError(
                f"{where} does not fit its config.json: {len(wrong)} tensors are missing, "
                f"unknown or of another shape, first {wrong[0]}"
            )
        self.load_state_dict(dict(tensors), assign=True)

    def _running(self, bricks: Sequence[int] | None) -> list[int]:
        if bricks is None:
            return list(range(len(self.bricks)))
        running = sorted(set(bricks))
        if not running or running[0] < 0 or running[-1] >= len(self.bricks):
            raise ValueError(
                f"bricks={tuple(bricks)}: choose at least one of 0 to {len(self.bricks) - 1}"
            )
        return running

    def _check_input(self, noisy: Tensor, sigma: Tensor, labels: Tensor | None) -> None:
        if noisy.ndim != 4 or noisy.shape[1] != self.spec.channels:
            raise ValueError(
                f"noisy has shape {tuple(noisy.shape)}; it must be (B, {self.spec.channels}, H, W)"
            )
        if sigma.shape != noisy.shape[:1]:
            raise ValueError(
                f"sigma has shape {tuple(sigma.shape)}; it must be ({noisy.shape[0]},), "
                "one noise level for each image"
            )
        if labels is not None and labels.shape != noisy.shape[:1]:
            raise ValueError(
                f"labels have shape {tuple(labels.shape)}; it must be ({noisy.shape[0]},), "
                "one class index for each image"
            )
        self.spec.check_canvas((noisy.shape[2], noisy.shape[3]))

    def _condition(self, c_noise: Tensor, labels: Tensor | None) -> Tensor:
        """What every brick is told of the image: (B, D), through the SiLU before modulation."""
        condition: Tensor = self.noise_embedding(c_noise)
        if self.class_embedding is not None:
            if labels is None:
                labels = torch.full_like(c_noise, self.spec.classes, dtype=torch.int64)
            condition = condition + self.class_embedding(labels)
        return F.silu(condition)

    def _hand_over(self, estimate: Tensor, noisy: Tensor, at: Coefficients) -> Tensor:
        """What the next brick reads of an estimate, at about unit variance."""
        if self.spec.hand_over == "raw":
            return to_raw(estimate, noisy, at)
        return estimate / self.spec.sigma_data
