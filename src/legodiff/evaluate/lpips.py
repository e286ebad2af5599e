"""Perceptual distances, and LPIPS v0.1 (Zhang et al. 2018), the one that Table 7 of the paper uses.

A perceptual distance compares the feature maps of a network, its *trunk*. At each pixel of each map
the features of both images are brought to length 1; then

    d(a, b) = sum over maps of the mean over pixels of sum_c w_c (a_c - b_c)²

with a weight w_c >= 0 for each channel of each map, LPIPS' *heads*. So it is the square of a
Euclidean distance, and ``Perceptual.embed`` gives the vectors that it is between.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from legodiff.evaluate import assets
from legodiff.evaluate.assets import Asset, Found
from legodiff.interop.files import read_weights

SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
"""Mean and standard deviation of colours in [-1, 1], as LPIPS has them."""
EPS = 1e-10
Trunk = Callable[[Tensor], Sequence[Tensor]]
"""Float images (B, 3, H, W) in [-1, 1] to feature maps (B, C, h, w), of any number and size."""


class Perceptual(nn.Module):
    """A perceptual distance: a trunk, and a weight for every channel of its maps."""

    def __init__(self, name: str, trunk: Trunk, weights: Sequence[Tensor]) -> None:
        """``weights`` (C,) of every map; raises ValueError if one is negative or no number.

        ``name`` is what to call the distance in a report: LPIPS only with LPIPS' own files.
        """
        super().__init__()
        self.name, self.trunk, self.maps = name, trunk, len(weights)
        self.files: tuple[Found, ...] = ()
        """What it was read from."""
        for number, weight in enumerate(weights):
            if not (torch.isfinite(weight).all() and (weight >= 0).all()):
                raise ValueError(f"{name}: a weight of map {number} is negative or no number")
            self.register_buffer(f"root{number}", weight.float().sqrt().view(1, -1, 1, 1))

    @property
    def device(self) -> torch.device:
        """Of the weights."""
        return self.get_buffer("root0").device

    @torch.no_grad()
    def embed(self, images: Tensor) -> Tensor:
        """Float images (B, 3, H, W) in [-1, 1] to (B, D): distances are |embed(a) - embed(b)|².

        D is the number of all features. Raises ValueError for other images or another trunk.
        """
        if not images.is_floating_point() or images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(
                f"{self.name} takes float images (B, 3, H, W) in [-1, 1], "
                f"not {images.dtype} of {tuple(images.shape)}"
            )
        maps = self.trunk(images.to(self.device))
        roots = [self.get_buffer(f"root{number}") for number in range(self.maps)]
        if (given := [x.shape[1] for x in maps]) != (own := [root.shape[1] for root in roots]):
            raise ValueError(f"{self.name}: the trunk's maps have {given} channels, not {own}")
        parts = []
        for x, root in zip(maps, roots, strict=True):
            unit = x / (x.square().sum(dim=1, keepdim=True).sqrt() + EPS)
            parts.append((unit * (root / (x.shape[2] * x.shape[3]) ** 0.5)).flatten(1))
        return torch.cat(parts, dim=1)

    @torch.no_grad()
    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """The distance (B,) of each of ``first`` to that of ``second``; both as for ``embed``.

        Raises ValueError for images of different sizes or numbers.
        """
        if first.shape != second.shape:
            raise ValueError(
                f"{self.name} compares images of one size, "
                f"not {tuple(first.shape)} with {tuple(second.shape)}"
            )
        return (self.embed(first) - self.embed(second)).square().sum(dim=1)


def as_floats(images: Tensor) -> Tensor:
    """uint8 images (B, 1 or 3, H, W) as float32 (B, 3, H, W) in [-1, 1]; grey is repeated.

    Raises ValueError for others.
    """
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3):
        raise ValueError(
            "images must be uint8 (B, C, H, W) of one or three channels, "
            f"not {images.dtype} of {tuple(images.shape)}"
        )
    return (images.float() / 127.5 - 1).expand(-1, 3, -1, -1)


def gradients() -> Perceptual:
    """A plain distance that needs no weights, "PD-gradients": steps of brightness, and colours.

    Maps at full, half and a quarter of the size; nothing is learnt, so it sees edges and no things.
    """

    def trunk(images: Tensor) -> list[Tensor]:
        maps = []
        for side in (1, 2, 4):
            x = F.avg_pool2d(images, side)
            down, across = torch.gradient(x.mean(dim=1, keepdim=True), dim=(2, 3))
            maps.append(torch.cat([x, 4 * down, 4 * across, torch.ones_like(down)], dim=1))
        return maps

    return Perceptual("PD-gradients", trunk, [torch.ones(6)] * 3)


class Convolutions(nn.Module):
    """The convolutions of a classifier by torchvision's names, read after some of the layers."""

    channels: tuple[int, ...]
    """Of the maps."""
    least: int
    """The smallest side of an image."""

    def __init__(self, layers: Sequence[nn.Module], read: Sequence[int]) -> None:
        super().__init__()
        self.features, self.read = nn.Sequential(*layers), frozenset(read)

    def forward(self, images: Tensor) -> list[Tensor]:
        if min(images.shape[2:]) < self.least:
            height, width = images.shape[2:]
            raise ValueError(
                f"{type(self).__name__} needs images of at least {self.least}x{self.least} pixels; "
                f"these are {height}x{width}"
            )
        shift, scale = (images.new_tensor(values).view(1, 3, 1, 1) for values in (SHIFT, SCALE))
        x, maps = (images - shift) / scale, []
        for number, layer in enumerate(self.features):
            x = layer(x)
            if number in self.read:
                maps.append(x)
        return maps


class AlexNet(Convolutions):
    """Krizhevsky 2014 as in torchvision; maps after each of its five ReLUs."""

    channels, least = (64, 192, 384, 256, 256), 31

    def __init__(self) -> None:
        layers = [
            *(nn.Conv2d(3, 64, 11, stride=4, padding=2), nn.ReLU(True), nn.MaxPool2d(3, 2)),
            *(nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(True), nn.MaxPool2d(3, 2)),
            *(nn.Conv2d(192, 384, 3, padding=1), nn.ReLU(True)),
            *(nn.Conv2d(384, 256, 3, padding=1), nn.ReLU(True)),
            *(nn.Conv2d(256, 256, 3, padding=1), nn.ReLU(True)),
        ]
        super().__init__(layers, read=(1, 4, 7, 9, 11))


class VGG16(Convolutions):
    """Simonyan and Zisserman 2015 as in torchvision; a map of each of five sizes."""

    channels, least = (64, 128, 256, 512, 512), 16

    def __init__(self) -> None:
        layers: list[nn.Module] = []
        read, before = [], 3
        for depth, channels in zip((2, 2, 3, 3, 3), self.channels, strict=True):
            layers += [nn.MaxPool2d(2)] if layers else []
            for _ in range(depth):
                layers += [nn.Conv2d(before, channels, 3, padding=1), nn.ReLU(True)]
                before = channels
            read.append(len(layers) - 1)
        super().__init__(layers, read)


NETS: dict[str, tuple[type[AlexNet | VGG16], Asset, Asset]] = {
    "alex": (AlexNet, assets.ALEXNET, assets.ALEX_HEADS),
    "vgg": (VGG16, assets.VGG16, assets.VGG_HEADS),
}
"""LPIPS' names of its networks, and the files of their trunks and heads."""
Given = str | os.PathLike[str] | None


def open_lpips(net: str = "alex", trunk: Given = None, heads: Given = None) -> Perceptual:
    """LPIPS v0.1 with AlexNet ("alex") or VGG16 ("vgg"), by LPIPS' names of them.

    ``trunk`` and ``heads`` are files as ``assets.find`` takes them: torchvision's weights, of which
    only ``features`` are needed, and LPIPS' linear layers; without them they are looked for. The
    distance is named "LPIPS-alex" with the files of LPIPS itself, else "PD-" and the name of
    the file that is another. Raises ValueError, in one line that names the file, if one is
    missing or does not fit.
    """
    if net not in NETS:
        raise ValueError(f"unknown network {net!r} of LPIPS; choose from {', '.join(NETS)}")
    kind, trunk_asset, heads_asset = NETS[net]
    files = assets.find(trunk_asset, trunk), assets.find(heads_asset, heads)
    with torch.device("meta"):
        network = kind()
    shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    network.load_state_dict(_read(files[0].path, shapes, ignored="classifier."), assign=True)
    names = [f"lin{number}.model.1.weight" for number in range(len(kind.channels))]
    shapes = {name: (1, count, 1, 1) for name, count in zip(names, kind.channels, strict=True)}
    read = _read(files[1].path, shapes)
    name = next((f"PD-{file.path.stem}" for file in files if not file.genuine), f"LPIPS-{net}")
    made = Perceptual(name, network, [read[name].flatten() for name in names])
    made.files = files
    return made.eval().requires_grad_(False)


def _read(
    path: Path, shapes: Mapping[str, tuple[int, ...]], ignored: str = ""
) -> dict[str, Tensor]:
    """float32 tensors of these names and shapes, and no others but the ignored ones."""
    found = read_weights(path).tensors
    if ignored:
        found = {name: tensor for name, tensor in found.items() if not name.startswith(ignored)}
    for name in sorted({*shapes, *found}):
        if name not in found:
            raise ValueError(f"{path}: there is no {name}")
        if name not in shapes:
            raise ValueError(f"{path}: {name[:100]} has no place here")
        tensor = found[name]
        if tuple(tensor.shape) != shapes[name]:
            raise ValueError(f"{path}: {name} is {tuple(tensor.shape)}, not {shapes[name]}")
        if not tensor.is_floating_point() or not torch.isfinite(tensor).all():
            raise ValueError(f"{path}: {name} holds what is no number")
    return {name: tensor.float() for name, tensor in found.items()}
