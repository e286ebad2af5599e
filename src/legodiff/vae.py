"""A pretrained autoencoder (VAE), opened from safetensors only; a hash of its weights names it."""

import importlib
import os
import re
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from legodiff import store
from legodiff.store import CONFIG
from legodiff.vae_tiles import LARGE, decode_in_tiles

WEIGHTS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model-*.safetensors")
INDEX = "diffusion_pytorch_model.safetensors.index.json"  # where there are several
FETCHED = tuple(place + file for place in ("", "vae/") for file in (CONFIG, INDEX, *WEIGHTS))
PRECISIONS: dict[str, Callable[[str], AbstractContextManager[Any]]] = {
    "fp32": lambda device: nullcontext(),
    "bf16": lambda device: torch.autocast(device, dtype=torch.bfloat16),
}


@dataclass(frozen=True)
class VaeSpec:
    """What latents must know of the VAE that made them.

    Two are equal if hash and numbers are; the name only tells where the VAE was found.
    """

    channels: int
    """Of the latents."""
    downsampling: int
    """Pixels along the side of a latent."""
    scale: float = 1.0
    """The VAE's own ``scaling_factor``: (z - shift) * scale has a deviation of about 1."""
    shift: float = 0.0
    name: str | None = field(default=None, compare=False)
    """Folder, or Hub id and commit; None for a VAE that is not known."""
    sha256: str | None = None
    """Of the weights; None for a VAE that is not known."""

    def __post_init__(self) -> None:
        for name, largest in (("channels", 1024), ("downsampling", 256)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= largest:
                raise ValueError(f"VAE: {name} is {value!r}; it must be from 1 to {largest}")
        for name, smallest in (("scale", 0.0), ("shift", -1e6)):
            number = getattr(self, name)
            if not is_number(number) or not smallest < number < 1e6:
                raise ValueError(
                    f"VAE: {name} is {number!r}; it must be a number between {smallest:g} and 1e6"
                )
        if (self.name, self.sha256) == (None, None):
            return
        if not isinstance(self.name, str) or not self.name:
            raise ValueError(f"VAE: name is {self.name!r}; it must be a text, as there is a sha256")
        if not isinstance(self.sha256, str) or not re.fullmatch("[0-9a-f]{64}", self.sha256):
            raise ValueError(f"VAE: sha256 is {self.sha256!r}; it must be 64 hexadecimal digits")

    @property
    def known(self) -> bool:
        return self.sha256 is not None

    def __str__(self) -> str:
        return f"{self.name} ({self.sha256[:12]})" if self.sha256 else "an unknown VAE"


@dataclass(frozen=True)
class Vae:
    """An autoencoder ready to run: its facts and its network, a diffusers ``AutoencoderKL``."""

    spec: VaeSpec
    network: Any = field(repr=False)
    in_channels: int

    @torch.no_grad()
    def moments(self, pixels: Tensor, precision: str = "fp32") -> Tensor:
        """The posterior of each image: uint8 (B, C, H, W) to float32 (B, 2 * channels, h, w).

        The means come first, then the deviations. Grey images are repeated to the VAE's channels.
        """
        self.network.to(pixels.device)
        images = (pixels.float() / 127.5 - 1).expand(-1, self.in_channels, -1, -1)
        with PRECISIONS[precision](pixels.device.type):
            posterior = self.network.encode(images).latent_dist
        return torch.cat([posterior.mean, posterior.std], dim=1).float()

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Raw latents float32 (B, channels, h, w) to uint8 pixels (B, C, H, W), clipped.

        Large ones go through the decoder in tiles, one by one, with the same result.
        """
        self.network.to(latents.device)
        if latents.shape[-2] * latents.shape[-1] * self.spec.downsampling**2 > LARGE:
            parts = [decode_in_tiles(self.network, one[None]) for one in latents]
        else:
            parts = [self.network.decode(part).sample for part in torch.split(latents, 4)]
        return ((torch.cat(parts) + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def open_vae(folder_or_hub_id: str | os.PathLike[str]) -> Vae:
    """Opens an AutoencoderKL: its folder, that of a pipeline with a ``vae`` inside, or a Hub id.

    Raises ValueError, in one line, if there is none, if its weights are not safetensors or do not
    fit, or if diffusers is not installed.
    """
    folder, name = _find(folder_or_hub_id)
    files = _check(folder)
    network = _load(folder)
    config = network.config
    spec = VaeSpec(
        channels=config.latent_channels,
        downsampling=2 ** (len(config.block_out_channels) - 1),
        scale=config.scaling_factor,
        shift=config.shift_factor or 0.0,
        name=name,
        sha256=store.sha256(*files),
    )
    return Vae(spec, network, config.in_channels)


def check_same(made: VaeSpec, given: VaeSpec) -> None:
    """Raises ValueError, naming both, if latents that one VAE made are not for the other."""
    if made.known and made.sha256 != given.sha256:
        raise ValueError(
            f"the latents were made by the VAE {made}, not by {given}; "
            "use that VAE, or encode the images again"
        )
    for what in ("channels", "downsampling"):
        if getattr(made, what) != getattr(given, what):
            raise ValueError(
                f"the latents were made by {made} with {what} {getattr(made, what)}, "
                f"and the VAE {given} has {getattr(given, what)}"
            )


def _find(folder_or_hub_id: str | os.PathLike[str]) -> tuple[Path, str]:
    """The folder of a VAE, and the name to remember it by: of the Hub, with its commit."""
    try:
        folder, snapshot = store.find(folder_or_hub_id, needed=(), wanted=FETCHED)
    except ValueError as error:
        raise ValueError(f"VAE: {error}") from error
    name = f"{snapshot.repo}@{snapshot.commit}" if snapshot else str(folder.resolve())
    return (folder if (folder / CONFIG).is_file() else folder / "vae"), name


def _check(folder: Path) -> list[Path]:
    """The weights files, after a look at what the folder claims to be."""
    try:
        config = store.read_json(folder / CONFIG)
    except OSError as error:
        raise ValueError(f"VAE: {folder} holds no {CONFIG}; is it the folder of a VAE?") from error
    except ValueError as error:
        raise ValueError(f"VAE: {error}") from error
    found = config.get("_class_name") if isinstance(config, dict) else None
    if found != "AutoencoderKL":
        raise ValueError(f"VAE: {folder} holds a model of class {found!r}, not an AutoencoderKL")
    files = sorted(path for pattern in WEIGHTS for path in folder.glob(pattern))
    if not files:
        raise ValueError(
            f"VAE: {folder} holds no {WEIGHTS[0]}; only safetensors are read, so weights in a "
            ".bin or .ckpt file must be converted first"
        )
    return files


def _load(folder: Path) -> Any:
    """The network, complete or not at all: diffusers only warns of weights that are missing."""
    try:
        diffusers: Any = importlib.import_module("diffusers")  # takes seconds
    except ImportError as error:
        raise ValueError(
            "a VAE needs diffusers, which is not installed; run: pip install 'legodiff[latent]'"
        ) from error
    try:
        network, told = diffusers.AutoencoderKL.from_pretrained(
            folder,
            use_safetensors=True,
            local_files_only=True,
            low_cpu_mem_usage=False,
            output_loading_info=True,
        )
    except Exception as error:  # of many kinds, some of several lines
        reason = " ".join(str(error).split())
        raise ValueError(f"VAE: {folder} cannot be opened: {reason[:300]}") from error
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
        if told[kind]:
            raise ValueError(
                f"VAE: the weights in {folder} do not fit its {CONFIG}: "
                f"{kind.replace('_', ' ')} {', '.join(map(str, sorted(told[kind])[:3]))}"
            )
    return network.float().eval().requires_grad_(False)


def is_number(value: Any) -> bool:
    """Whether a value from JSON is a number; true and false are none."""
    return isinstance(value, int | float) and not isinstance(value, bool)
