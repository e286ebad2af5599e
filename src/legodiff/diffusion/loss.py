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
        bricks: Sequence[int] | None = None,
        *,
        samples: Sequence[Any] | None = None,
        fill: Tensor | None = None,
        detach: bool = False,
    ) -> list[Tensor]: ...

    def loss_weight(self, sigma: Tensor) -> Tensor: ...


def brick_losses(
    model: Trainable,
    clean: Tensor,
    noise: Tensor,
    sigma: Tensor,
    labels: Tensor | None = None,
    *,
    bricks: Sequence[int] | None = None,
    samples: Sequence[Any] | None = None,
    fill: Tensor | None = None,
    detach: bool = False,
) -> Tensor:
    """The loss of each brick that runs, on each image: (K, B), from the bottom to the top.

    A pure function: whatever chance decides is an argument.

    Args:
        clean: (B, C, H, W), training images in the model's space.
        noise: (B, C, H, W), standard normal.
        sigma: (B,), a noise level for each.
        labels: (B,) or None, as for ``denoise``.
        bricks: which bricks to run, as for ``denoise``.
        samples: for each brick of the stack the patches it runs on, None for all of them; None if
            all bricks run on all.
        fill: (B, C, H, W) or None, from ``fill_image``.
        detach: stop gradients between bricks.

    The loss is the mean over the pixels computed; unsampled patches are neither run nor counted.
    """
    noisy = clean + sigma.view(-1, 1, 1, 1) * noise
    estimates = model.estimates(
        noisy, sigma, labels, bricks, samples=samples, fill=fill, detach=detach
    )
    chosen = samples if samples is not None else [None] * len(estimates)
    if bricks is not None and samples is not None:
        chosen = [samples[brick] for brick in sorted(set(bricks))]
    weight = model.loss_weight(sigma)
    losses = []
    for estimate, sample in zip(estimates, chosen, strict=True):
        error = weight * (estimate - clean) ** 2  # (B, C, H, W)
        if sample is None:
            losses.append(error.mean(dim=(1, 2, 3)))
        else:
            mask = sample.mask.expand_as(error)  # the same number of pixels in every image
            losses.append(error.where(mask, 0).sum(dim=(1, 2, 3)) / mask[0].sum())
    return torch.stack(losses)


def fill_image(rule: str, clean: Tensor, noise: Tensor | None, std: float) -> Tensor | None:
    """What is read where the brick before did not compute a patch: an image, or None for "skip".

    ``noise``: standard normal like ``clean``, for the rule "noise" alone. Raises ValueError for an
    unknown rule.
    """
    if rule == "skip":
        return None
    if rule == "clean":
        return clean
    if rule == "zero":
        return torch.zeros_like(clean)
    if rule == "noise" and noise is not None:
        return std * noise
    raise ValueError(f"fill is {rule!r}; choose from {', '.join(FILLS)}")


def drop_labels(labels: Tensor, no_class: int, probability: float, uniform: Tensor) -> Tensor:
    """Replaces each label by ``no_class`` with the given probability, for classifier-free guidance.

    Each image is drawn on its own (Ho & Salimans 2022). ``labels``: int64 (B,); ``uniform``: (B,)
    random numbers in [0, 1].
    """
    return labels.masked_fill(uniform < probability, no_class)
