"""Weights of a DiT under the names of its authors' code, as those of a brick.

The authors of LEGO, like many others, build on that code: a brick of theirs is such a DiT.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from legodiff.model.layers import position_embedding

BLOCK = {
    "adaLN_modulation.1": "modulation",
    "attn.qkv": "attention.qkv",
    "attn.proj": "attention.out",
    "mlp.fc1": "mlp.0",
    "mlp.fc2": "mlp.2",
}
"""Layers of a block, theirs -> ours."""
NOISE = {"mlp.0": "first", "mlp.2": "second"}
"""Of the embedding of the noise level."""
POSITIONS_OFF = 1e-4  # their table is computed in other steps, and kept


class Tensors:
    """Tensors of a file by name, which remembers those that were used."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.tensors, self.used = tensors, set[str]()

    def __getitem__(self, name: str) -> Tensor:
        """float32. Raises ValueError if it is missing or holds no numbers."""
        if name not in self.tensors:
            raise ValueError(f"there is no {name} among its {len(self.tensors)} tensors")
        self.used.add(name)
        tensor = self.tensors[name]
        if not tensor.is_floating_point() or not torch.isfinite(tensor).all():
            raise ValueError(f"{name} holds {tensor.dtype} or what is no number")
        return tensor.float()

    def linear(self, theirs: str, ours: str) -> dict[str, Tensor]:
        return {f"{ours}.{part}": self[f"{theirs}.{part}"] for part in ("weight", "bias")}

    def count(self, prefix: str) -> int:
        """How many numbered parts ``prefix.0``, ``prefix.1`` ... there are."""
        number = 0
        while any(name.startswith(f"{prefix}.{number}.") for name in self.tensors):
            number += 1
        return number

    def check_all_used(self, but: Sequence[str] = ()) -> None:
        """Raises ValueError if there is a tensor that nobody asked for."""
        left = sorted(self.tensors.keys() - self.used - set(but))
        if left:
            raise ValueError(f"{len(left)} of its tensors have no place here, first {left[0]}")


def brick_shape(tensors: Tensors, prefix: str) -> tuple[int, int, int]:
    """Side of the patches, local field, and number of blocks of the DiT under ``prefix``."""
    local = tensors[f"{prefix}x_embedder.proj.weight"].shape[-1]
    tokens = tensors[f"{prefix}pos_embed"].shape[1]
    side = round(tokens**0.5)
    if side * side != tokens:
        raise ValueError(f"{prefix}pos_embed has {tokens} positions, which are no square")
    return side * local, local, tensors.count(f"{prefix}blocks")


def brick_weights(
    tensors: Tensors, prefix: str, seen: Sequence[Sequence[int]], channels_out: int
) -> dict[str, Tensor]:
    """The weights of one of our bricks from the DiT under ``prefix``.

    Args:
        tensors: those of the file.
        prefix: of the names, such as "model.0.".
        seen: their number of each of our input channels; empty for one that they do not have.
        channels_out: how many of their output channels to take, from the first on.
    """
    size, local, depth = brick_shape(tensors, prefix)
    weight = tensors[f"{prefix}x_embedder.proj.weight"]  # (D, C, l, l)
    width, none = len(weight), torch.zeros(len(weight), 1, local, local)
    channels = [weight[:, list(one)] if one else none for one in seen]
    found = {
        "embed.weight": torch.cat(channels, dim=1).flatten(1),
        "embed.bias": tensors[f"{prefix}x_embedder.proj.bias"],
    }
    _check_positions(tensors[f"{prefix}pos_embed"], size // local, width)
    for number in range(depth):
        for theirs, ours in BLOCK.items():
            found |= tensors.linear(f"{prefix}blocks.{number}.{theirs}", f"blocks.{number}.{ours}")
    found |= tensors.linear(f"{prefix}final_layer.adaLN_modulation.1", "output.modulation")
    for part, value in tensors.linear(f"{prefix}final_layer.linear", "output.linear").items():
        fields = value.view(local, local, -1, *value.shape[1:])[:, :, :channels_out]
        found[part] = fields.movedim(2, 0).flatten(0, 2)  # row, column, channel -> channel first
    return found


def _check_positions(table: Tensor, side: int, width: int) -> None:
    ours = position_embedding((side, side), (side, side), width, torch.device("cpu"))
    if table.shape != (1, *ours.shape) or (table[0] - ours).abs().max() > POSITIONS_OFF:
        raise ValueError("its position embedding is not the fixed sines and cosines of DiT")
