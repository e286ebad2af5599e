"""One LEGO brick: a small DiT over the patches of an image, each patch on its own."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from legodiff.model.layers import Block, Output, position_embedding
from legodiff.model.patches import PatchSample, coordinates, merge, shift, split
from legodiff.model.spec import BrickSpec
from legodiff.once import once

AT_ONCE = 2**15  # tokens: enough to keep any device busy


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
        patch, local = self.spec.patch(canvas), self.spec.local
        width = self.embed.out_features
        where, positions = geometry(self.spec, canvas, self.trained, width, image.device)

        patches = split(shift(image, -self.spec.phase), patch)  # (B, P, C_in, r, r)
        fields = split(patches, local).flatten(-3)  # (B, P, N, C_in * l * l)
        if sample is None:
            fields = self.run_all(fields, where, positions, condition)
        else:
            # A place serves many images: embedding, unlike indexing, adds their gradients in order.
            places = self.place(where, positions)  # (P, N, D)
            chosen = F.embedding(sample.index, places.flatten(1))
            places = chosen.view(*sample.index.shape, *places.shape[1:])  # (B, K, N, D)
            fields = sample.put(self.run(sample.take(fields), places, condition))
        fields = fields.view(*fields.shape[:-1], -1, local, local)  # (B, P, N, C_out, l, l)
        patches = merge(fields, patch)  # (B, P, C_out, r, r)
        return shift(merge(patches, canvas), self.spec.phase)

    def run_all(
        self, fields: Tensor, where: Tensor, positions: Tensor, condition: Tensor
    ) -> Tensor:
        """Every patch, so many at a time that memory does not grow with the canvas."""
        step = patches_at_once(fields)
        parts = zip(torch.split(fields, step, dim=1), torch.split(where, step), strict=True)
        found = [self.run(part, self.place(place, positions), condition) for part, place in parts]
        return torch.cat(found, dim=1) if len(found) > 1 else found[0]

    def run(self, fields: Tensor, places: Tensor, condition: Tensor) -> Tensor:
        """Some patches: fields (B, P, N, C_in * l * l) to fields (B, P, N, C_out * l * l)."""
        tokens = F.linear(fields, self.embed.weight[:, : fields.shape[-1]]) + places
        dtype = next(self.blocks.parameters(), tokens).dtype  # of rounded blocks a lower one
        tokens, told = tokens.to(dtype), condition.to(dtype)
        for block in self.blocks:
            tokens = block(tokens, told)
        out: Tensor = self.output(tokens.to(self.embed.weight.dtype), condition)
        return out

    def place(self, where: Tensor, positions: Tensor) -> Tensor:
        """What tokens know of where they are: coordinates (P, N, 2 * l * l) to (P, N, D).

        The embedding of their pixels' coordinates on the canvas, plus their positions (N, D) within
        the patch. The same for every image, so it is computed once and not per image.
        """
        weight = self.embed.weight[:, -where.shape[-1] :]
        table = F.linear(where.to(weight.dtype), weight, self.embed.bias)
        return table + positions.to(weight.dtype)


def patches_at_once(fields: Tensor) -> int:
    """How many patches of fields (B, P, N, ...) to run together: all of them to learn."""
    batch, patches, count = fields.shape[:3]
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return patches
    most = max(1, AT_ONCE // (batch * count))
    return int(2 ** (most.bit_length() - 1))  # so that they can share tiles


@once
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
