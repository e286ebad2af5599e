"""Decoding large latents in tiles, with the result of decoding them whole.

Tiles that are decoded on their own differ from the whole picture: group normalisation takes its
statistics from all pixels. So the decoder goes through the picture layer by layer, each in tiles
with as much of their neighbours as a convolution sees, and keeps the statistics of whole layers.
Only a tile at a time is on the device; layers in between stay in main memory.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LARGE = 2**20  # pixels of a picture that is decoded in tiles
TILE = 256  # pixels of a layer along the side of a tile


def decode_in_tiles(network: Any, latents: Tensor, tile: int = TILE) -> Tensor:
    """Raw latents (1, C, h, w) to pixels (1, 3, H, W) in [-1, 1], of a diffusers AutoencoderKL.

    Raises ValueError, before anything is computed, for a decoder with layers not known here.
    """
    _check(network)
    decoder, device = network.decoder, latents.device
    x = latents if network.post_quant_conv is None else network.post_quant_conv(latents)
    x = decoder.mid_block(decoder.conv_in(x)).cpu()  # attention sees everything; it is small here
    for block in decoder.up_blocks:
        for part in (*block.resnets, *(block.upsamplers or ())):
            if type(part).__name__ == "ResnetBlock2D":
                x = _resnet(part, x, device, tile)
            else:
                x = _layer(x, None, part.conv, device, tile, larger=2)
    return _layer(x, decoder.conv_norm_out, decoder.conv_out, device, tile).to(device)


def _check(network: Any) -> None:
    """Raises ValueError unless all layers of the decoder are those that are run here."""
    odd = []
    if network.config.act_fn not in ("silu", "swish"):  # two names of one function
        odd.append(f"the activation {network.config.act_fn}")
    for block in network.decoder.up_blocks:
        if type(block).__name__ != "UpDecoderBlock2D":  # others have more than the two lists below
            odd.append(type(block).__name__)
            continue
        for part in (*block.resnets, *(block.upsamplers or ())):
            kind = type(part).__name__
            resnet = kind == "ResnetBlock2D" and part.time_emb_proj is None
            larger = kind == "Upsample2D" and part.use_conv and part.norm is None
            if not resnet and not larger:
                odd.append(kind)
    if odd:
        raise ValueError(
            f"VAE: a decoder with {odd[0]} cannot be run in tiles, as pictures of more than "
            f"{LARGE:,} pixels are; draw a smaller one"
        )


def _resnet(block: Any, x: Tensor, device: torch.device, tile: int) -> Tensor:
    """x + conv2(silu(norm2(conv1(silu(norm1(x))))))."""
    inside = _layer(x, block.norm1, block.conv1, device, tile)
    out = _layer(inside, block.norm2, block.conv2, device, tile)
    for rows, columns in _tiles(x.shape[-2:], tile):
        part = x[..., rows, columns].to(device)
        kept = part if block.conv_shortcut is None else block.conv_shortcut(part)
        out[..., rows, columns] += kept.cpu()
    return out.div_(block.output_scale_factor)


def _layer(
    x: Tensor,
    norm: nn.GroupNorm | None,
    conv: nn.Conv2d,
    device: torch.device,
    tile: int,
    larger: int = 1,
) -> Tensor:
    """conv(silu(norm(x))), or without a norm conv(x enlarged), a 3x3 convolution with padding."""
    statistics = None if norm is None else _statistics(x, norm.num_groups)
    height, width = x.shape[-2] * larger, x.shape[-1] * larger
    out = x.new_empty(*x.shape[:-3], conv.out_channels, height, width)
    for rows, columns in _tiles((height, width), tile):
        # The tile, and one pixel around it where there is one.
        top, left = max(rows.start - 1, 0), max(columns.start - 1, 0)
        bottom, right = min(rows.stop + 1, height), min(columns.stop + 1, width)
        part = x[
            ..., top // larger : -(-bottom // larger), left // larger : -(-right // larger)
        ].to(device)
        if norm is not None and statistics is not None:
            part = F.silu(_normalised(part, norm, *statistics))
        if larger > 1:
            part = F.interpolate(part, scale_factor=larger, mode="nearest")
            part = part[..., top % larger :, left % larger :]
            part = part[..., : bottom - top, : right - left]
        pad = (
            int(columns.start == 0),
            int(columns.stop == width),
            int(rows.start == 0),
            int(rows.stop == height),
        )
        done = F.conv2d(F.pad(part, pad), conv.weight, conv.bias)
        out[..., rows, columns] = done.cpu()
    return out


def _statistics(x: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """Mean and variance of each group of channels over all pixels: (B, groups)."""
    variance, mean = torch.var_mean(x.reshape(len(x), groups, -1), dim=2, correction=0)
    return mean, variance


def _normalised(x: Tensor, norm: nn.GroupNorm, mean: Tensor, variance: Tensor) -> Tensor:
    """Group normalisation with statistics from elsewhere."""
    each = x.shape[1] // norm.num_groups
    shift = mean.to(x).repeat_interleave(each, dim=1)[..., None, None]
    scale = (variance.to(x) + norm.eps).rsqrt().repeat_interleave(each, dim=1)[..., None, None]
    return (x - shift) * (scale * norm.weight[:, None, None]) + norm.bias[:, None, None]


def _tiles(size: Any, tile: int) -> Iterator[tuple[slice, slice]]:
    for top in range(0, size[0], tile):
        for left in range(0, size[1], tile):
            yield slice(top, min(top + tile, size[0])), slice(left, min(left + tile, size[1]))
