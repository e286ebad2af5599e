"""The layers of a DiT (Peebles & Xie 2023), over the tokens of many patches at once.

Shapes: B images, P patches an image, N tokens a patch, D width. Tokens are (B, P, N, D). Attention
stays inside a patch; every linear layer sees all B * P * N tokens as one matrix; the adaLN
modulation belongs to the image, is computed once for it, and is broadcast over its P * N tokens.
"""

from collections import OrderedDict
from math import log

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from legodiff.model.kernels import attend, linear


class Linear(nn.Linear):
    """A linear layer that many tokens go through; with ``gelu``, tanh-GELU of what it gives."""

    def __init__(self, width_in: int, width_out: int, gelu: bool = False) -> None:
        super().__init__(width_in, width_out)
        self.gelu = gelu

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias, self.gelu)


class Modulation(nn.Linear):
    """Condition (B, D), which has gone through SiLU, to ``parts`` vectors, each (B, 1, 1, D)."""

    def __init__(self, width: int, parts: int) -> None:
        super().__init__(width, parts * width)
        self.parts = parts

    def forward(self, condition: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        return super().forward(condition)[:, None, None].chunk(self.parts, dim=-1)


def modulate(tokens: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Layer norm without weights of its own, then adaLN's scale and shift."""
    normed = F.layer_norm(tokens, tokens.shape[-1:], eps=1e-6)
    return torch.addcmul(shift, normed, 1 + scale)


class Attention(nn.Module):
    """Multi-head self-attention among the N tokens of each patch."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = Linear(width, 3 * width)
        self.out = Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        size = tokens.shape[-1] // self.heads
        qkv = self.qkv(tokens).view(*tokens.shape[:-1], 3, self.heads, size)
        out: Tensor = self.out(attend(qkv))
        return out


def mlp(width: int, ratio: float) -> nn.Sequential:
    """The two linear layers of a block. Their names leave room for the GELU inside the first."""
    hidden = int(ratio * width)
    layers = {"0": Linear(width, hidden, gelu=True), "2": Linear(hidden, width)}
    return nn.Sequential(OrderedDict(layers))


class Block(nn.Module):
    """The adaLN-Zero block of DiT: the identity until it is trained."""

    def __init__(self, width: int, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.modulation = Modulation(width, parts=6)
        self.attention = Attention(width, heads)
        self.mlp = mlp(width, mlp_ratio)

    def forward(self, tokens: Tensor, condition: Tensor) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(condition)
        tokens = torch.addcmul(tokens, gate1, self.attention(modulate(tokens, shift1, scale1)))
        return torch.addcmul(tokens, gate2, self.mlp(modulate(tokens, shift2, scale2)))


class Output(nn.Module):
    """The final adaLN and linear layer: tokens (B, P, N, D) to (B, P, N, channels)."""

    def __init__(self, width: int, channels: int) -> None:
        super().__init__()
        self.modulation = Modulation(width, parts=2)
        self.linear = nn.Linear(width, channels)

    def forward(self, tokens: Tensor, condition: Tensor) -> Tensor:
        shift, scale = self.modulation(condition)
        out: Tensor = self.linear(modulate(tokens, shift, scale))
        return out


def sinusoids(c_noise: Tensor, count: int) -> Tensor:
    """c_noise (B,) to (B, count): cosines, then sines, of periods up to 10,000; float32."""
    ramp = torch.arange(count // 2, device=c_noise.device, dtype=torch.float32) / (count // 2)
    angles = c_noise.float()[:, None] * torch.exp(-log(10_000) * ramp)
    return torch.cat([angles.cos(), angles.sin()], dim=1)


class NoiseEmbedding(nn.Module):
    """c_noise (B,) to (B, D): 256 sinusoids, then a small network."""

    frequencies = 256

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Linear(self.frequencies, width)
        self.second = nn.Linear(width, width)

    def forward(self, c_noise: Tensor) -> Tensor:
        waves = sinusoids(c_noise, self.frequencies)
        out: Tensor = self.second(F.silu(self.first(waves.to(self.first.weight.dtype))))
        return out


def position_embedding(
    grid: tuple[int, int], trained: tuple[int, int], width: int, device: torch.device
) -> Tensor:
    """DiT's fixed sine-cosine embedding of a grid of tokens: float32 of shape (rows * columns, D).

    The first half of the channels tells the column, the second the row. A grid other than the
    ``trained`` one is stretched over it, centre on centre: its positions leave the range seen in
    training by less than half a token. The trained grid itself is embedded exactly as in DiT.
    """
    frequencies = 10_000.0 ** -(torch.arange(width // 4, device=device) / (width // 4))
    embedded = []
    for count, known in zip(grid, trained, strict=True):
        position = (torch.arange(count, device=device) + 0.5) * (known / count) - 0.5
        angles = position[:, None] * frequencies
        embedded.append(torch.cat([angles.sin(), angles.cos()], dim=1))
    rows, columns = embedded
    return torch.cat([columns.repeat(grid[0], 1), rows.repeat_interleave(grid[1], dim=0)], dim=1)


def initialize(network: nn.Module, class_std: float) -> None:
    """Sets every weight of a freshly built network; the only place where weights are drawn.

    | layer                             | weight           | bias |
    |-----------------------------------|------------------|------|
    | linear                            | Xavier uniform   | 0    |
    | linear of ``NoiseEmbedding``      | N(0, 0.02²)      | 0    |
    | class table                       | N(0, class_std²) |      |
    | ``Modulation``, last of ``Output``| 0                | 0    |

    The zeros make each block the identity and each brick's raw output zero (adaLN-Zero).
    """
    for module in network.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=class_std)
    for module in network.modules():
        if isinstance(module, NoiseEmbedding):
            nn.init.normal_(module.first.weight, std=0.02)
            nn.init.normal_(module.second.weight, std=0.02)
        elif isinstance(module, Modulation):
            nn.init.zeros_(module.weight)
        elif isinstance(module, Output):
            nn.init.zeros_(module.linear.weight)
