"""Weights that measures are defined by, where they are on this machine.

A measure has its name only with the very file that defined it, so every file found is hashed.
Nothing is downloaded but a file of the Hub that was asked for.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch

from legodiff import store
from legodiff.data.sources import cache_folder
from legodiff.hub import fetch

HEADS = "https://github.com/richzhang/PerceptualSimilarity/raw/master/lpips/weights/v0.1"


@dataclass(frozen=True)
class Asset:
    """A file that is known byte by byte."""

    name: str
    """In words."""
    file: str
    sha256: str
    url: str
    also: tuple[str, ...] = ()
    """Other names that the same file goes by."""
    inside: tuple[tuple[str, str], ...] = ()
    """Packages that bring it, and where in them."""


@dataclass(frozen=True)
class Found:
    """A file on this machine."""

    path: Path
    sha256: str
    genuine: bool
    """Whether it is the asset, byte by byte."""


INCEPTION = Asset(
    "FID's Inception",
    "pt_inception-2015-12-05-6726825d.pth",
    "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
    "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/"
    "pt_inception-2015-12-05-6726825d.pth",
    also=("weights-inception-2015-12-05-6726825d.pth",),  # torch-fidelity's
)
ALEXNET = Asset(
    "torchvision's AlexNet",
    "alexnet-owt-7be5be79.pth",
    "7be5be791159472b1fbf3c69796f7cb30dca7ad8466c2df70058c37116cdee02",
    "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",
)
VGG16 = Asset(
    "torchvision's VGG16",
    "vgg16-397923af.pth",
    "397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0",
    "https://download.pytorch.org/models/vgg16-397923af.pth",
)


def _heads(net: str, sha256: str) -> Asset:
    file = f"{net}.pth"
    inside = (
        ("torchmetrics", f"functional/image/lpips_models/{file}"),
        ("lpips", f"weights/v0.1/{file}"),
    )
    return Asset(f"LPIPS' heads for {net}", file, sha256, f"{HEADS}/{file}", inside=inside)


ALEX_HEADS = _heads("alex", "df73285e35b22355a2df87cdb6b70b343713b667eddbda73e1977e0c860835c0")
VGG_HEADS = _heads("vgg", "a78928a0af1e5f0fcb1f3b9e8f8c3a2a5a3de244d830ad5c1feddc79b8432868")
ASSETS = (INCEPTION, ALEXNET, VGG16, ALEX_HEADS, VGG_HEADS)


def find(asset: Asset, given: str | os.PathLike[str] | None = None) -> Found:
    """The file of an asset on this machine.

    Args:
        asset: one of ``ASSETS``.
        given: a file to take instead, whatever is in it, or one of the Hub as
            "owner/name/file.safetensors". Without it the asset is looked for in the folders
            ``LEGODIFF_ASSETS``, ``LEGODIFF_CACHE`` (by default ~/.cache/legodiff) and the cache of
            ``torch.hub``, and in packages that bring it.

    Raises ValueError, in one line, if there is none, or if what has its name is another file.
    """
    if given is not None:
        path = _given(given)
        sha256 = store.sha256(path)
        return Found(path, sha256, sha256 == asset.sha256)
    for path in _places(asset):
        if not path.is_file():
            continue
        if (sha256 := store.sha256(path)) != asset.sha256:
            raise ValueError(
                f"{path} is not {asset.name}: its sha256 is {sha256}, not {asset.sha256}; is it "
                "damaged? Remove it, or name it as the file to use"
            )
        return Found(path, sha256, True)
    raise ValueError(
        f"{asset.name} is missing: put {asset.url} (sha256 {asset.sha256}) "
        f"at {_folders()[0] / asset.file}, or name a file to use"
    )


def _given(given: str | os.PathLike[str]) -> Path:
    path, name = Path(given), str(given)
    if path.is_file():
        return path
    if path.exists() or not (parts := re.fullmatch(r"([\w.-]+/[\w.@-]+)/(.+\.safetensors)", name)):
        raise ValueError(f"{name} is neither a file nor one of the Hub, owner/name/x.safetensors")
    return fetch(parts[1], None, [parts[2]]).folder / parts[2]


def _folders() -> list[Path]:
    """Where files are looked for; the first is where to put them."""
    chosen = os.environ.get("LEGODIFF_ASSETS")
    hub = Path(torch.hub.get_dir()) / "checkpoints"  # where pytorch-fid and torchvision keep theirs
    return [*([Path(chosen)] if chosen else []), cache_folder(), hub]


def _places(asset: Asset) -> Iterator[Path]:
    for folder in _folders():
        yield from (folder / name for name in (asset.file, *asset.also))
    for package, inside in asset.inside:
        spec = find_spec(package)  # does not import it
        yield from (
            Path(home) / inside for home in (spec and spec.submodule_search_locations) or ()
        )
