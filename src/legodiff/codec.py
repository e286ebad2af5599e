"""What is stored <-> the space the model works in: mean 0 and a known deviation.

Stored are pixels (`PixelCodec`) or the latents of a VAE (`LatentCodec`).
"""

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from legodiff.store import build
from legodiff.vae import Vae, VaeSpec, check_same, is_number, open_vae


class Codec(Protocol):
    """The way into the model's space and back to pixels."""

    @property
    def ready(self) -> bool:
        """Whether `decode` has all it needs."""

    def prepare(self) -> None:
        """Fetches what `decode` needs. Raises ValueError, in one line, if it is not at hand."""

    def encode(self, stored: Tensor, /) -> Tensor:
        """Pixels or raw latents (B, C, h, w) to float32 (B, C, h, w) in the model's space."""

    def decode(self, images: Tensor, /) -> Tensor:
        """The model's space (B, C, h, w) to uint8 pixels (B, 1 or 3, H, W)."""

    def preview(self, images: Tensor, /) -> Tensor:
        """As `decode`, but always possible and quick: latents in false colours, (B, 3, h, w)."""

    @property
    def factor(self) -> int:
        """Pixels of the picture along a side of a pixel of the model."""

    def check_channels(self, channels: int, /) -> None:
        """Raises ValueError if a model of that many channels cannot use this codec."""

    def to_dict(self) -> dict[str, Any]:
        """The codec as JSON data for `codec_from_dict`."""


def codec_from_dict(values: Any) -> Codec:
    """The codec that ``to_dict`` described. Raises ValueError for anything else."""
    kind = values.get("kind") if isinstance(values, dict) else None
    kinds: dict[Any, Any] = {"pixels": PixelCodec, "latents": LatentCodec}
    if not isinstance(kind, str) or kind not in kinds:
        raise ValueError(f"codec of kind {kind!r}: this version knows {' and '.join(kinds)}")
    codec: Codec = kinds[kind].from_dict(values)
    return codec


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
        if not mean or not all(is_number(m) and -1 <= m <= 1 for m in mean):
            raise ValueError(f"codec: mean is {self.mean!r}; it must be numbers from -1 to 1")
        if not is_number(self.scale) or not 0 < self.scale < 1e6:
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

    def encode(self, pixels: Tensor) -> Tensor:
        """uint8 (B, C, H, W) to float32 (B, C, H, W) in the model's space."""
        return (pixels.float() / 127.5 - 1 - _channels(self.mean, pixels)) * self.scale

    def decode(self, images: Tensor) -> Tensor:
        """The inverse: model space to uint8 (B, C, H, W), clipped."""
        return _to_uint8((images.float() / self.scale + _channels(self.mean, images) + 1) * 127.5)

    preview = decode

    @property
    def ready(self) -> bool:
        return True

    @property
    def factor(self) -> int:
        return 1

    def prepare(self) -> None:
        """There is nothing to fetch."""

    def check_channels(self, channels: int) -> None:
        if len(self.mean) not in (1, channels):
            raise ValueError(f"codec: {len(self.mean)} means for a model of {channels} channels")

    def to_dict(self) -> dict[str, Any]:
        return {"kind": "pixels", **asdict(self)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "PixelCodec":
        """Raises ValueError for another kind, unknown keys and values that cannot be."""
        return build(cls, "codec", _of_kind("pixels", values))


@dataclass(frozen=True)
class LatentCodec:
    """Latents z of a VAE, scaled by the VAE's own numbers, then by those of the training data.

    ``model = ((z - vae.shift) * vae.scale - mean) * scale``. Decoding to pixels needs the VAE:
    `attach` opens it; without, `decode` tries the name it is recorded under.
    """

    vae: VaeSpec
    mean: tuple[float, ...]
    """Per channel, of (z - vae.shift) * vae.scale."""
    scale: float
    _opened: dict[str, Vae] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        mean = self.mean if isinstance(self.mean, list | tuple) else (self.mean,)
        if not all(is_number(m) and -1e6 < m < 1e6 for m in mean):
            raise ValueError(f"codec: mean is {self.mean!r}; it must be numbers")
        if len(mean) != self.vae.channels:
            raise ValueError(
                f"codec: {len(mean)} means for latents of {self.vae.channels} channels"
            )
        if not is_number(self.scale) or not 0 < self.scale < 1e6:
            raise ValueError(f"codec: scale is {self.scale!r}; it must be a number above 0")
        object.__setattr__(self, "mean", tuple(mean))

    @classmethod
    def fit(
        cls, vae: VaeSpec, mean: Sequence[float], std: Sequence[float], sigma_data: float
    ) -> "LatentCodec":
        """The codec that gives latents mean 0 and deviation ``sigma_data``.

        Args:
            vae: what made them.
            mean, std: of each channel of the raw latents z.
            sigma_data: the deviation that the model expects.
        """
        centre = (np.asarray(mean, np.float64) - vae.shift) * vae.scale
        deviation = float(np.sqrt(np.mean(np.square(std)))) * vae.scale
        if not 0 < deviation < 1e6:
            raise ValueError(f"the latents have a deviation of {deviation}; are they all the same?")
        return cls(vae, tuple(round(float(m), 6) for m in centre), round(sigma_data / deviation, 6))

    def attach(self, folder_or_hub_id: str | os.PathLike[str]) -> None:
        """Opens the VAE to decode with.

        Raises ValueError if it cannot be opened, or, naming both, if it is not the one that made
        the latents. Where that is not known, any VAE of fitting channels will do.
        """
        vae = open_vae(folder_or_hub_id)
        check_same(self.vae, vae.spec)
        self._opened["vae"] = vae

    def encode(self, latents: Tensor) -> Tensor:
        """Raw latents (B, C, h, w) to float32 (B, C, h, w) in the model's space."""
        normal = (latents.float() - self.vae.shift) * self.vae.scale
        return (normal - _channels(self.mean, latents)) * self.scale

    def latents(self, images: Tensor) -> Tensor:
        """The inverse: model space to raw latents, float32 (B, C, h, w)."""
        normal = images.float() / self.scale + _channels(self.mean, images)
        return normal / self.vae.scale + self.vae.shift

    def decode(self, images: Tensor) -> Tensor:
        """Model space (B, C, h, w) to uint8 pixels (B, 3, H, W), clipped.

        Raises ValueError if there is no VAE to do it; see `prepare`.
        """
        self.prepare()
        return self._opened["vae"].decode(self.latents(images))

    def preview(self, images: Tensor) -> Tensor:
        """Model space (B, C, h, w) to uint8 (B, 3, h, w): three channels as red, green and blue.

        Grey are fewer channels than three. Black to white are three deviations either side of 0.
        """
        shown = images[:, :3] if images.shape[1] >= 3 else images[:, :1].expand(-1, 3, -1, -1)
        return _to_uint8((shown.float() / self.scale / 3 + 1) * 127.5)

    def check_channels(self, channels: int) -> None:
        if self.vae.channels != channels:
            raise ValueError(
                f"codec: latents of {self.vae.channels} channels for a model of {channels} channels"
            )

    def to_dict(self) -> dict[str, Any]:
        return {
            "kind": "latents",
            "vae": asdict(self.vae),
            "mean": list(self.mean),
            "scale": self.scale,
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "LatentCodec":
        """Raises ValueError for another kind, unknown keys and values that cannot be."""
        values = _of_kind("latents", values)
        vae = build(VaeSpec, "codec: vae", values.get("vae"))
        return build(cls, "codec", {**values, "vae": vae})

    @property
    def factor(self) -> int:
        return self.vae.downsampling

    @property
    def ready(self) -> bool:
        """Whether there is a VAE to decode with."""
        return "vae" in self._opened

    def prepare(self) -> None:
        """Opens the VAE that made the latents, where it was found then, unless one is attached.

        Raises ValueError, in one line, if it is not there, or another one is.
        """
        if self.ready:
            return
        if self.vae.name is None:
            raise ValueError(
                "these latents do not say which VAE made them; name one with --vae DIR_OR_ID"
            )
        try:
            self.attach(self.vae.name)
        except ValueError as error:
            raise ValueError(
                f"pixels need the VAE {self.vae}; name it with --vae DIR_OR_ID ({error})"
            ) from error


def _of_kind(kind: str, values: Any) -> dict[str, Any]:
    """The values but the kind, which must be this one."""
    found = values.get("kind") if isinstance(values, dict) else None
    if found != kind:
        raise ValueError(f"codec of kind {found!r}, not {kind}")
    return {key: values[key] for key in values if key != "kind"}


def _channels(mean: tuple[float, ...], like: Tensor) -> Tensor:
    return torch.tensor(mean, dtype=torch.float32, device=like.device).view(-1, 1, 1)


def _to_uint8(pixels: Tensor) -> Tensor:
    return pixels.round().clamp(0, 255).to(torch.uint8)


def to_pil(pixels: Tensor) -> list[Image.Image]:
    """uint8 (B, C, H, W) to PIL images. Raises ValueError unless there are 1 or 3 channels."""
    if pixels.shape[1] not in (1, 3):
        raise ValueError(f"pictures have 1 or 3 channels, not {pixels.shape[1]}")
    arrays = pixels.movedim(1, -1).cpu().numpy()
    return [Image.fromarray(a[..., 0] if a.shape[-1] == 1 else a) for a in arrays]
