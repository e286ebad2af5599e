"""One LEGO brick: a small DiT over the patches of an image, each patch on its own."""

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from legodiff.model.layers import Block, Output, position_embedding
from legodiff.model.patches import PatchSample, coordinates, merge, shift, split
from legodiff.model.spec import BrickSpec


class LegoBrick(nn.Module):
    """Channels of an image (B, C_in, H, W) to raw output (B, C_out, H, W), patch by patch."""

    def __init__(
        self,
        spec: BrickSpec,
        channels_in: int,
        channels_out: int,
        width: int,
        heads: int,
        mlp_ratio: float,
        trained: tuple[int, int],
    ) -> None:
        super().__init__()
        self.spec = spec
        self.trained = trained
        field = spec.local**2
        self.embed = nn.Linear((channels_in + 2) * field, width)  # the two are row and column
        self.blocks = nn.ModuleList([Block(width, heads, mlp_ratio) for _ in range(spec.depth)])
        self.output = Output(width, channels_out * field)

    def forward(
        self, image: Tensor, condition: Tensor, sample: PatchSample | None = None
    ) -> Tensor:
        """Runs every patch, or only those of ``sample`` (the others come out as zero)."""
        canvas = (image.shape[-2], image.shape[-1])
        patch = self.spec.patch(canvas)
        local = self.spec.local

        patches = split(shift(image, -self.spec.phase), patch)  # (B, P, C_in, r, r)
        places = self.place(canvas, image)  # (P, N, D)
        if sample is not None:
            patches = sample.take(patches)  # (B, K, C_in, r, r)
            # A place serves many images: embedding, unlike indexing, adds their gradients in order.
            chosen = F.embedding(sample.index, places.flatten(1))
            places = chosen.view(*sample.index.shape, *places.shape[1:])  # (B, K, N, D)
        fields = split(patches, local).flatten(-3)  # (B, P, N, C_in * l * l)
        tokens = F.linear(fields, self.embed.weight[:, : fields.shape[-1]]) + places

        dtype = self.dtype
        tokens, told = tokens.to(dtype), condition.to(dtype)
        for block in self.blocks:
            tokens = block(tokens, told)

        fields = self.output(tokens.to(condition.dtype), condition).unflatten(
            -1, (-1, local, local)
        )
        patches = merge(fields, patch)  # (B, P, C_out, r, r)
        if sample is not None:
            patches = sample.put(patches)
        return shift(merge(patches, canvas), self.spec.phase)

    @property
    def dtype(self) -> torch.dtype:
        """Of its blocks, which may be lower than that of what is around them."""
        return next(self.blocks.parameters(), self.embed.weight).dtype

    def place(self, canvas: tuple[int, int], like: Tensor) -> Tensor:
        """What a token knows of where it is: (P, N, D).

        The embedding of its pixel coordinates on the canvas, plus its position within the patch.
        The same for every image, so it is computed once and not per image.
        """
        width = self.embed.out_features
        find = geometry.__wrapped__ if torch.compiler.is_compiling() else geometry
        fields, positions = find(self.spec, canvas, self.trained, width, like.device)
        weight = self.embed.weight[:, -fields.shape[-1] :]
        table = F.linear(fields.to(like.dtype), weight, self.embed.bias)
        return table + positions.to(like.dtype)


@lru_cache(maxsize=16)
@torch.inference_mode(False)  # or what sampling has made could not serve training
def geometry(
    spec: BrickSpec,
    canvas: tuple[int, int],
    trained: tuple[int, int],
    width: int,
    device: torch.device,
) -> tuple[Tensor, Tensor]:
    """Pixel coordinates (P, N, 2 * l * l) and positions (N, D) of the tokens of a canvas."""
    patch, known = spec.patch(canvas), spec.patch(trained)
    places = shift(coordinates(canvas, device), -spec.phase)
    fields = split(split(places, patch), spec.local).flatten(-3)
    grid = (patch[0] // spec.local, patch[1] // spec.local)
    known_grid = (known[0] // spec.local, known[1] // spec.local)
    return fields, position_embedding(grid, known_grid, width, device)
