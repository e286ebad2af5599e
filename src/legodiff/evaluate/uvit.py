"""U-ViT (Bao et al. 2023, "All are Worth Words"), from the layers of this library.

An opponent for cost: tables 1 and 2 of the LEGO paper hold it beside bricks. It was written from
its paper and is not trained here. Noise level and class are tokens among those of the image; a
block of the second half also reads what its mirror in the first half gave. The layers being ours,
its GELU is the tanh one and its qkv projection has a bias.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from legodiff.model.layers import Attention, mlp, sinusoids
from legodiff.model.patches import merge, split
from legodiff.model.precondition import edm, to_clean

SIGMA_DATA = 0.5


@dataclass(frozen=True)
class UViTSpec:
    """What a U-ViT is."""

    image_size: tuple[int, int]
    channels: int
    width: int
    heads: int
    depth: int
    """Number of blocks: odd, one in the middle."""
    patch: int = 4
    classes: int = 0
    """Class ``classes`` means none; 0: unconditional."""


class UViT(nn.Module):
    """The network of a ``UViTSpec``, under EDM's preconditioning; calling it denoises."""

    def __init__(self, spec: UViTSpec) -> None:
        super().__init__()
        self.spec = spec
        width, field = spec.width, spec.channels * spec.patch**2
        tokens = spec.image_size[0] * spec.image_size[1] // spec.patch**2
        self.embed = nn.Linear(field, width)
        self.class_embedding = nn.Embedding(spec.classes + 1, width) if spec.classes else None
        extra = 2 if spec.classes else 1
        self.positions = nn.Parameter(torch.zeros(extra + tokens, width))
        self.blocks = nn.ModuleList(TokenBlock(width, spec.heads) for _ in range(spec.depth))
        self.joints = nn.ModuleList(nn.Linear(2 * width, width) for _ in range(spec.depth // 2))
        self.norm = nn.LayerNorm(width)
        self.output = nn.Linear(width, field)
        self.smooth = nn.Conv2d(spec.channels, spec.channels, 3, padding=1)

    def forward(self, noisy: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        """(B, C, H, W) of the image size, (B,), class indices (B,); returns (B, C, H, W)."""
        spec = self.spec
        at = edm(sigma, SIGMA_DATA)
        fields = split(noisy * at.scale, spec.patch).flatten(-3)  # (B, N, C * p * p)
        heads = [sinusoids(at.noise, spec.width)]
        if self.class_embedding is not None:
            if labels is None:
                labels = torch.full_like(sigma, spec.classes, dtype=torch.int64)
            heads.append(self.class_embedding(labels))
        tokens = torch.cat([torch.stack(heads, dim=1), self.embed(fields)], dim=1) + self.positions

        tokens = tokens[:, None]  # (B, 1, N, D): to the layers the image is one patch
        half = spec.depth // 2
        first: list[Tensor] = []
        for number, block in enumerate(self.blocks):
            if number > half:
                joint = self.joints[number - half - 1]
                tokens = joint(torch.cat([tokens, first.pop()], dim=-1))
            tokens = block(tokens)
            if number < half:
                first.append(tokens)

        fields = self.output(self.norm(tokens[:, 0, len(heads) :]))
        pieces = fields.unflatten(-1, (spec.channels, spec.patch, spec.patch))
        raw = self.smooth(merge(pieces, spec.image_size))
        return to_clean(raw.to(noisy.dtype), noisy, at)


class TokenBlock(nn.Module):
    """A plain transformer block: what is known of the image is among its tokens."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.attention = Attention(width, heads)
        self.mlp = mlp(width, 4.0)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, P, N, D) to the same."""
        tokens = tokens + self.attention(self.norms[0](tokens))
        out: Tensor = tokens + self.mlp(self.norms[1](tokens))
        return out
