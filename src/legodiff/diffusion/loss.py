"""The training objective: every brick is supervised, on the patches it was run on.

The paper's equation 12, with the objective's own weight (one on the raw output, for EDM as for
DDPM). Where the brick before did not compute a patch, the next one reads a *fill*:

| fill    | what is read there                                                    |
|---------|-----------------------------------------------------------------------|
| "skip"  | what skipping the brick would give: the estimate below it, or, where  |
|         | there is none, the best one without a network, c_skip * noisy         |
| "clean" | the clean image (the paper; it leaks the answer to the brick above)   |
| "noise" | fresh noise of the data's standard deviation                          |
| "zero"  | zero, the data's mean                                                 |

The estimate that a refining brick *adds to* is the same for every fill: a fill is only read.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

FILLS = ("skip", "clean", "noise", "zero")


class Trainable(Protocol):
    """What the loss needs of a model; ``LegoStack`` is one and says what each does."""

    def estimates(
        self,
        noisy: Tensor,
        sigma: Tensor,
        labels: Tensor | None = None,
        *,
        samples: Sequence[Any] | None = None,
        fill: Tensor | None = None,
        detach: bool = False,
    ) -> list[Tensor]: ...

    def draw_patches(
        self,
        batch: int,
        size: tuple[int, int],
        ratio: float | Sequence[float],
        generator: torch.Generator | None = None,
        device: torch.device | None = None,
    ) -> list[Any]: ...

    def loss_weight(self, sigma: Tensor) -> Tensor: ...


def brick_losses(
    model: Trainable,
    clean: Tensor,
    sigma: Tensor,
    labels: Tensor | None = None,
    *,
    patch_ratio: float | Sequence[float] = 1.0,
    fill: str = "skip",
    fill_std: float = 0.5,
    detach: bool = False,
    generator: torch.Generator | None = None,
) -> Tensor:
    """The loss of each brick on each image: (K, B), from the bottom brick to the top.

    Args:
        clean: (B, C, H, W), training images in the model's space.
        sigma: (B,), a noise level for each.
        labels: (B,) or None, as for ``denoise``.
        patch_ratio: share in (0, 1] of its patches a patch-brick runs on; a number, or one a brick.
        fill: see above. ``fill_std`` is the standard deviation of "noise".
        detach: stop gradients between bricks.
        generator: source of the noise and the patches, on the device of ``clean``.

    The loss is the mean over the pixels computed; unsampled patches are neither run nor counted.
    """
    draw: dict[str, Any] = {"generator": generator, "device": clean.device}
    noise = torch.randn(clean.shape, **draw)
    noisy = clean + sigma.view(-1, 1, 1, 1) * noise
    size = (clean.shape[2], clean.shape[3])
    samples = model.draw_patches(len(clean), size, patch_ratio, **draw)

    filled: Tensor | None
    if fill == "skip":
        filled = None
    elif fill == "clean":
        filled = clean
    elif fill == "noise":
        filled = fill_std * torch.randn(clean.shape, **draw)
    elif fill == "zero":
        filled = torch.zeros_like(clean)
    else:
        raise ValueError(f"fill is {fill!r}; choose from {', '.join(FILLS)}")

    estimates = model.estimates(noisy, sigma, labels, samples=samples, fill=filled, detach=detach)
    weight = model.loss_weight(sigma)
    losses = []
    for estimate, sample in zip(estimates, samples, strict=True):
        error = weight * (estimate - clean) ** 2  # (B, C, H, W)
        if sample is None:
            losses.append(error.mean(dim=(1, 2, 3)))
        else:
            mask = sample.mask.expand_as(error)  # the same number of pixels in every image
            losses.append(error.where(mask, 0).sum(dim=(1, 2, 3)) / mask[0].sum())
    return torch.stack(losses)


def drop_labels(
    labels: Tensor, no_class: int, probability: float, generator: torch.Generator | None = None
) -> Tensor:
    """Replaces each label by ``no_class`` with the given probability, for classifier-free guidance.

    Each image is drawn on its own (Ho & Salimans 2022). ``labels``: int64 (B,).
    """
    draw = torch.rand(labels.shape, generator=generator, device=labels.device)
    return labels.masked_fill(draw < probability, no_class)
