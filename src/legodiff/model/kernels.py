"""Linear layers and attention by what is fastest where they run: every such choice is made here.

| where               | linear layer | with tanh-GELU              | short attention              |
|---------------------|--------------|-----------------------------|------------------------------|
| CPU of AMD, float32 | oneDNN       | oneDNN, fused (no gradient) | in tiles of 16               |
| other CPU, float32  | torch (MKL)  | oneDNN, fused (no gradient) | in tiles of 16               |
| CPU, bfloat16       | torch        | torch                       | in tiles of 16 (no gradient) |
| CUDA                | torch        | torch                       | in tiles of 128              |
| other, or exported  | torch        | torch                       | each on its own              |

Under autocast or ``torch.compile`` linear layers are torch's, and attention is as in the table.
``benchmarks/kernels.py`` measures what each is worth on a CPU. All agree with the plain path to
rounding, as long as values are finite: a NaN reaches the other patches of its tile.
"""

import platform
from functools import lru_cache
from math import inf
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad
from torch.autograd.function import once_differentiable

from legodiff.once import once

MAX_SEQUENCES = 65_535  # CUDA's attention kernels put the batch on a 16-bit grid axis
FEW = 64  # rows below which it takes longer to call oneDNN than it saves
TILES = {"cuda": 128, "cpu": 16}
"""Rows that attention works on at a time, which sequences up to ``SHORT`` tokens share."""
SHORT = 32
POWERS = (128, 64, 32, 16, 8, 4, 2, 1)


def linear(x: Tensor, weight: Tensor, bias: Tensor, gelu: bool = False) -> Tensor:
    """(..., K) by (N, K) and (N,) to (..., N), and if asked tanh-GELU of that."""
    open_to_choice = _open_to_choice(x)
    if open_to_choice and gelu and not torch.is_grad_enabled() and x.shape[:-1].numel() >= FEW:
        return _one_dnn(x, weight, bias, "gelu", "tanh")
    if open_to_choice and prefers_one_dnn():
        out = _OneDnnLinear.apply(x, weight, bias)  # type: ignore[no-untyped-call]
    else:
        out = F.linear(x, weight, bias)
    return F.gelu(out, approximate="tanh") if gelu else out


def _open_to_choice(x: Tensor) -> bool:
    """Whether nobody but torch's own backward pass looks at what happens to a tensor."""
    return (
        x.device.type == "cpu"
        and x.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and forward_ad._current_level < 0
        and torch._C._functorch.peek_interpreter_stack() is None  # torch.func
    )


def _one_dnn(
    x: Tensor, weight: Tensor, bias: Tensor | None, after: str = "none", kind: str = ""
) -> Tensor:
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, after, [], kind)
    return out


class _OneDnnLinear(torch.autograd.Function):
    """The gradient of the weight stays with torch: oneDNN would copy both of its factors."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _one_dnn(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad
        grad = grads[0]
        rows = grad.flatten(0, -2)
        return (
            _one_dnn(grad, weight.t(), None) if of_x else None,
            rows.t() @ x.flatten(0, -2) if of_weight else None,
            rows.sum(dim=0) if of_bias else None,
        )


@lru_cache
def prefers_one_dnn() -> bool:
    """Whether this is an AMD CPU, where MKL makes less than half of oneDNN's FLOP/s in float32."""
    told = Path("/proc/cpuinfo")
    maker = told.read_text() if told.is_file() else platform.processor()
    has_mkl = torch.backends.mkl.is_available()  # type: ignore[no-untyped-call]
    return has_mkl and "AuthenticAMD" in maker


def attend(qkv: Tensor) -> Tensor:
    """Attention among the tokens of each patch: (B, P, N, 3, heads, d) to (B, P, N, heads * d)."""
    batch, patches, count, _, heads, size = qkv.shape
    together, rows = 1, rows_of_tile(qkv)
    if 2 * count <= rows and count <= SHORT:
        together = next(n for n in POWERS if n * count <= rows and patches % n == 0)
    mask = None if together == 1 else mask_of_tile(together, count, qkv.device, qkv.dtype)
    qkv = qkv.reshape(batch * (patches // together), together * count, 3, heads, size)
    query, key, value = qkv.permute(2, 0, 3, 1, 4)  # each (sequences, heads, tokens, d)
    if query.shape[0] > MAX_SEQUENCES:  # unlike len, a shape stays open in a traced graph
        parts = zip(*(x.split(MAX_SEQUENCES) for x in (query, key, value)), strict=True)
        mixed = torch.cat([F.scaled_dot_product_attention(q, k, v, mask) for q, k, v in parts])
    else:
        mixed = F.scaled_dot_product_attention(query, key, value, mask)
    return mixed.transpose(1, 2).reshape(batch, patches, count, heads * size)


@once
def mask_of_tile(together: int, count: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Added to the scores of a tile of so many patches: minus infinity where two are of others."""
    patch = torch.arange(together * count, device=device) // count
    apart = patch[:, None] != patch
    return torch.zeros(apart.shape, device=device, dtype=dtype).masked_fill(apart, -inf)


def rows_of_tile(qkv: Tensor) -> int:
    """How many rows of queries short sequences should fill together; 1: none."""
    if torch.compiler.is_exporting():
        return 1  # the graph may run elsewhere
    if qkv.device.type == "cpu" and qkv.dtype != torch.float32 and torch.is_grad_enabled():
        return 1  # the backward pass would be slower
    return TILES.get(qkv.device.type, 1)
