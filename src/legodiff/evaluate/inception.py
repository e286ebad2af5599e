"""The Inception network that FID is defined by, in PyTorch: Szegedy et al. 2016, as of 2015-12-05.

Weights are those of ``pytorch-fid`` (converted from the TensorFlow graph that ADM's evaluation
runs), by the names of torchvision. What differs from torchvision's network is of that graph: the
average pools do not count their padding, the last block takes a maximum instead, images are resized
without half-pixel centres, and there are 1,008 classes.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SIDE, CLASSES, SPATIAL = 299, 1008, 7


class InceptionFeatures(NamedTuple):
    """What the metrics read of a batch of images."""

    pool: Tensor
    """(B, 2048): for FID, KID, precision and recall."""
    spatial: Tensor
    """(B, 17 * 17 * 7), row by row and channels last: for sFID."""
    logits: Tensor
    """(B, 1008), without bias, as ADM's Inception Score reads them."""


class Conv(nn.Module):
    """Convolution, batch norm, ReLU."""

    def __init__(
        self, before: int, after: int, kernel: int | tuple[int, int], stride: int = 1, pad: int = 0
    ) -> None:
        super().__init__()
        rows, columns = (kernel, kernel) if isinstance(kernel, int) else kernel
        padding = (pad * (rows // 2), pad * (columns // 2))
        self.conv = nn.Conv2d(before, after, (rows, columns), stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(after, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)), inplace=True)


def same(before: int, after: int, kernel: int | tuple[int, int]) -> Conv:
    """A convolution that keeps the size."""
    return Conv(before, after, kernel, pad=1)


def average(x: Tensor) -> Tensor:
    """Means of 3 x 3, at the border of what is there."""
    return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


class Block35(nn.Module):
    """35 x 35: torchvision's A."""

    def __init__(self, before: int, pooled: int) -> None:
        super().__init__()
        self.branch1x1 = Conv(before, 64, 1)
        self.branch5x5_1, self.branch5x5_2 = Conv(before, 48, 1), same(48, 64, 5)
        self.branch3x3dbl_1, self.branch3x3dbl_2 = Conv(before, 64, 1), same(64, 96, 3)
        self.branch3x3dbl_3 = same(96, 96, 3)
        self.branch_pool = Conv(before, pooled, 1)

    def forward(self, x: Tensor) -> Tensor:
        fives = self.branch5x5_2(self.branch5x5_1(x))
        threes = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch1x1(x), fives, threes, self.branch_pool(average(x))], dim=1)


class To17(nn.Module):
    """35 x 35 to 17 x 17: torchvision's B."""

    def __init__(self, before: int) -> None:
        super().__init__()
        self.branch3x3 = Conv(before, 384, 3, stride=2)
        self.branch3x3dbl_1, self.branch3x3dbl_2 = Conv(before, 64, 1), same(64, 96, 3)
        self.branch3x3dbl_3 = Conv(96, 96, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch3x3(x), double, F.max_pool2d(x, 3, stride=2)], dim=1)


class Block17(nn.Module):
    """17 x 17: torchvision's C."""

    def __init__(self, inner: int) -> None:
        super().__init__()
        row, column = (1, 7), (7, 1)
        self.branch1x1 = Conv(768, 192, 1)
        self.branch7x7_1, self.branch7x7_2 = Conv(768, inner, 1), same(inner, inner, row)
        self.branch7x7_3 = same(inner, 192, column)
        self.branch7x7dbl_1, self.branch7x7dbl_2 = Conv(768, inner, 1), same(inner, inner, column)
        self.branch7x7dbl_3 = same(inner, inner, row)
        self.branch7x7dbl_4, self.branch7x7dbl_5 = same(inner, inner, column), same(inner, 192, row)
        self.branch_pool = Conv(768, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        single = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        double = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        double = self.branch7x7dbl_5(self.branch7x7dbl_4(double))
        return torch.cat([self.branch1x1(x), single, double, self.branch_pool(average(x))], dim=1)


class To8(nn.Module):
    """17 x 17 to 8 x 8: torchvision's D."""

    def __init__(self) -> None:
        super().__init__()
        self.branch3x3_1, self.branch3x3_2 = Conv(768, 192, 1), Conv(192, 320, 3, stride=2)
        self.branch7x7x3_1, self.branch7x7x3_2 = Conv(768, 192, 1), same(192, 192, (1, 7))
        self.branch7x7x3_3 = same(192, 192, (7, 1))
        self.branch7x7x3_4 = Conv(192, 192, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        threes = self.branch3x3_2(self.branch3x3_1(x))
        sevens = self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x)))
        return torch.cat([threes, self.branch7x7x3_4(sevens), F.max_pool2d(x, 3, stride=2)], dim=1)


class Block8(nn.Module):
    """8 x 8: torchvision's E. The last one of the graph pools by maximum."""

    def __init__(self, before: int, maximum: bool) -> None:
        super().__init__()
        self.maximum = maximum
        self.branch1x1, self.branch3x3_1 = Conv(before, 320, 1), Conv(before, 384, 1)
        self.branch3x3_2a, self.branch3x3_2b = same(384, 384, (1, 3)), same(384, 384, (3, 1))
        self.branch3x3dbl_1, self.branch3x3dbl_2 = Conv(before, 448, 1), same(448, 384, 3)
        self.branch3x3dbl_3a, self.branch3x3dbl_3b = same(384, 384, (1, 3)), same(384, 384, (3, 1))
        self.branch_pool = Conv(before, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        single = self.branch3x3_1(x)
        double = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        pooled = F.max_pool2d(x, 3, stride=1, padding=1) if self.maximum else average(x)
        parts = [
            self.branch1x1(x),
            *(self.branch3x3_2a(single), self.branch3x3_2b(single)),
            *(self.branch3x3dbl_3a(double), self.branch3x3dbl_3b(double)),
            self.branch_pool(pooled),
        ]
        return torch.cat(parts, dim=1)


class Inception(nn.Module):
    """uint8 images (B, 3, H, W) to ``InceptionFeatures``."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = Conv(3, 32, 3, stride=2)
        self.Conv2d_2a_3x3, self.Conv2d_2b_3x3 = Conv(32, 32, 3), same(32, 64, 3)
        self.Conv2d_3b_1x1, self.Conv2d_4a_3x3 = Conv(64, 80, 1), Conv(80, 192, 3)
        self.Mixed_5b, self.Mixed_5c = Block35(192, 32), Block35(256, 64)
        self.Mixed_5d, self.Mixed_6a = Block35(288, 64), To17(288)
        self.Mixed_6b, self.Mixed_6c, self.Mixed_6d = Block17(128), Block17(160), Block17(160)
        self.Mixed_6e, self.Mixed_7a = Block17(192), To8()
        self.Mixed_7b, self.Mixed_7c = Block8(1280, maximum=False), Block8(2048, maximum=True)
        self.fc = nn.Linear(2048, CLASSES)

    def forward(self, images: Tensor) -> InceptionFeatures:
        x = (resize(images.float(), SIDE) - 128) / 128
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(F.max_pool2d(x, 3, stride=2)))
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(F.max_pool2d(x, 3, stride=2))))
        x = self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))
        spatial = self.Mixed_6d.branch1x1(x)[:, :SPATIAL].permute(0, 2, 3, 1).flatten(1)
        x = self.Mixed_7a(self.Mixed_6e(self.Mixed_6d(x)))
        pool = self.Mixed_7c(self.Mixed_7b(x)).mean(dim=(2, 3))
        return InceptionFeatures(pool, spatial, pool @ self.fc.weight.T)


def resize(images: Tensor, side: int) -> Tensor:
    """Bilinear as in TensorFlow 1: pixel i of the result is at i * (old / new) of the image."""
    for dim in (2, 3):
        old = images.shape[dim]
        at = torch.arange(side, device=images.device, dtype=torch.float32) * (old / side)
        low = at.floor().long().clamp(max=old - 1)
        high = (low + 1).clamp(max=old - 1)
        part = (at - low).view(-1, *[1] * (3 - dim))
        images = torch.lerp(images.index_select(dim, low), images.index_select(dim, high), part)
    return images
