"""Pixels <-> the space the model works in, where clean images have mean 0 and a known deviation."""

from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from legodiff.store import build


@dataclass(frozen=True)
class PixelCodec:
    """Grey or colour pixels, shifted and scaled by the statistics of the training data.

    ``model = (pixel / 127.5 - 1 - mean) * scale``. The default is EDM's: plain [-1, 1].
    """

    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    """Per channel, in [-1, 1]."""
    scale: float = 1.0

    @classmethod
    def fit(cls, images: np.ndarray, sigma_data: float) -> "PixelCodec":
        """The codec that gives uint8 images (N, C, H, W) mean 0 and deviation ``sigma_data``."""
        pixels = images.astype(np.float64) / 127.5 - 1
        mean = pixels.mean(axis=(0, 2, 3))
        std = float((pixels - mean[:, None, None]).std())
        if std == 0:
            raise ValueError("all pixels of the training images have the same value")
        return cls(tuple(round(float(m), 6) for m in mean), round(sigma_data / std, 6))

    def _mean(self, like: Tensor) -> Tensor:
        return torch.tensor(self.mean, dtype=torch.float32, device=like.device).view(-1, 1, 1)

    def encode(self, pixels: Tensor) -> Tensor:
        """uint8 (B, C, H, W) to float32 (B, C, H, W) in the model's space."""
        return (pixels.float() / 127.5 - 1 - self._mean(pixels)) * self.scale

    def decode(self, images: Tensor) -> Tensor:
        """The inverse: model space to uint8 (B, C, H, W), clipped."""
        pixels = (images.float() / self.scale + self._mean(images) + 1) * 127.5
        return pixels.round().clamp(0, 255).to(torch.uint8)

    def to_dict(self) -> dict[str, Any]:
        return {"kind": "pixels", **asdict(self)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "PixelCodec":
        rest = dict(values)
        if rest.pop("kind", None) != "pixels":
            raise ValueError(f"codec of kind {values.get('kind')!r}: this version knows pixels")
        codec = build(cls, "codec", rest)
        return replace(codec, mean=tuple(codec.mean))


def to_pil(pixels: Tensor) -> list[Image.Image]:
    """uint8 (B, C, H, W) with 1 or 3 channels to PIL images."""
    arrays = pixels.movedim(1, -1).cpu().numpy()
    return [Image.fromarray(a[..., 0] if a.shape[-1] == 1 else a) for a in arrays]
