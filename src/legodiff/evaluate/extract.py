"""Images to features, in batches, by several processes."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from legodiff.evaluate.features import FeatureNetwork
from legodiff.evaluate.frechet import Gaussian, Moments
from legodiff.evaluate.images import Images
from legodiff.train.distributed import World

Show = Callable[[float, float], None]
"""Told the images done, of how many."""


class Extracted(NamedTuple):
    """Features of images, in their order."""

    features: Tensor
    """float32 (N, D)"""
    pool: Gaussian
    """Of the features."""
    spatial: Gaussian | None
    """Of the spatial features, where the network has such."""
    logits: Tensor | None
    """float32 (N, K), where the network has such."""


@torch.no_grad()
def extract(
    images: Images, network: FeatureNetwork, world: World, batch: int, show: Show
) -> Extracted:
    """The features of images; processes take batches in turn, and each gets all.

    Raises ValueError for fewer than two images, and for features that are not finite.
    """
    spatial = Moments()
    found: list[tuple[int, Tensor, Tensor | None]] = []
    with exact(world.device):
        starts = range(0, images.count, batch)[world.rank :: world.size]
        for start in starts:
            part = range(start, min(start + batch, images.count))
            show(part.start, images.count)
            of = network.run(images.read(part).to(world.device))
            if of.spatial is not None:
                spatial.add(of.spatial)
            logits = None if of.logits is None else of.logits.float().cpu()
            found.append((start, of.pool.float().cpu(), logits))
    show(images.count, images.count)
    parts = sorted((p for one in world.gather(found) for p in one), key=lambda part: part[0])
    for number, other in enumerate(world.gather(spatial)):
        if number != world.rank:
            spatial.merge(other)
    features = torch.cat([pool for _, pool, _ in parts])
    scores = [logits for _, _, logits in parts if logits is not None]
    return Extracted(
        features,
        Gaussian.fit(features),
        spatial.gaussian() if spatial.count else None,
        torch.cat(scores) if scores else None,
    )


def exact(device: torch.device) -> AbstractContextManager[Any]:
    """No rounding of float32 products to TF32: it shows in the third digit of a FID."""
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = False
    return torch.backends.cudnn.flags(enabled=True, allow_tf32=False)
