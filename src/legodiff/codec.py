"""Pixels <-> the space the model works in, where clean images have mean 0 and a known deviation."""

from dataclasses import asdict, dataclass
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

    def __post_init__(self) -> None:
        mean = self.mean if isinstance(self.mean, list | tuple) else (self.mean,)
        if not mean or not all(_is_number(m) and -1 <= m <= 1 for m in mean):
            raise ValueError(f"codec: mean is {self.mean!r}; it must be numbers from -1 to 1")
        if not _is_number(self.scale) or not 0 < self.scale < 1e6:
            raise ValueError(f"codec: scale is {self.scale!r}; it must be a number above 0")
        object.__setattr__(self, "mean", tuple(mean))

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
        kind = values.get("kind") if isinstance(values, dict) else values
        if kind != "pixels":
            raise ValueError(f"codec of kind {kind!r}: this version knows pixels")
        return build(cls, "codec", {key: values[key] for key in values if key != "kind"})


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def to_pil(pixels: Tensor) -> list[Image.Image]:
    """uint8 (B, C, H, W) to PIL images. Raises ValueError unless there are 1 or 3 channels."""
    if pixels.shape[1] not in (1, 3):
        raise ValueError(f"pictures have 1 or 3 channels, not {pixels.shape[1]}")
    arrays = pixels.movedim(1, -1).cpu().numpy()
    return [Image.fromarray(a[..., 0] if a.shape[-1] == 1 else a) for a in arrays]
