"""A stack through ``torch.compile``: whole to draw with, block by block to learn."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from legodiff.model.stack import LegoStack

RECORDED = ("reduce-overhead", "max-autotune")
"""Modes of ``torch.compile`` that record CUDA graphs: each call overwrites what the last gave."""
MOST_GRAPHS = 256  # torch's own limit, 8, is for code that compiles again and again by mistake


class CompiledStack:
    """Denoises as the stack does. Each graph serves batches of any number of images.

    A graph is compiled when its bricks first run on a size of canvas; windows of a canvas all have
    one size. A lone image is faster in a graph of its own, which it gets unless there is one for
    several images already.
    """

    def __init__(self, stack: LegoStack, **options: Any) -> None:
        """``options`` are those of ``torch.compile``; ``mode="reduce-overhead"`` is CUDA graphs.

        They are given as a mode only, for what they overwrite has to be copied out.
        """
        self.stack, self.spec, self.options = stack, stack.spec, {"fullgraph": True, **options}
        self.recorded = options.get("mode") in RECORDED
        self.graphs: dict[tuple[Any, ...], Callable[..., list[Tensor]]] = {}

    def parameters(self) -> Iterator[nn.Parameter]:
        return self.stack.parameters()

    def __call__(
        self,
        noisy: Tensor,
        sigma: Tensor,
        labels: Tensor | None = None,
        bricks: Sequence[int] | None = None,
    ) -> Tensor:
        return self.estimates(noisy, sigma, labels, bricks)[-1]

    def estimates(
        self,
        noisy: Tensor,
        sigma: Tensor,
        labels: Tensor | None = None,
        bricks: Sequence[int] | None = None,
    ) -> list[Tensor]:
        """As ``LegoStack.estimates``. Raises ValueError if torch cannot compile here."""
        running = tuple(sorted(set(range(len(self.spec.bricks)) if bricks is None else bricks)))
        # What is on the CPU would keep CUDA graphs from being recorded.
        sigma = sigma.to(noisy.device, non_blocking=True)
        inputs = [noisy, sigma] if labels is None else [noisy, sigma, labels]
        count, several = len(noisy), (running, len(inputs), noisy.shape[1:], True)
        key = several
        if count == 1 and several in self.graphs:
            inputs = [tensor.repeat(2, *[1] * (tensor.ndim - 1)) for tensor in inputs]
        elif count == 1:
            key = (*several[:3], False)
        if key not in self.graphs:
            only = partial(_estimates, self.stack, running)
            self.graphs[key] = torch.compile(only, **self.options)
        if len(inputs[0]) > 1:
            for tensor in inputs:
                torch._dynamo.mark_dynamic(tensor, 0)
        if self.recorded:
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        with telling_failure(), torch._dynamo.config.patch(recompile_limit=MOST_GRAPHS):
            found = [estimate[:count] for estimate in self.graphs[key](*inputs)]
        return [estimate.clone() for estimate in found] if self.recorded else found


def compile_blocks(stack: LegoStack, **options: Any) -> None:
    """From now on its blocks run, forward and backward, through ``torch.compile``.

    One graph for each shape of tokens serves all blocks alike: bricks may be left out, and memory
    may be shared out, as before. Names of weights stay. ``options`` are those of
    ``torch.compile``.
    """
    torch._dynamo.config.recompile_limit = MOST_GRAPHS
    for brick in stack.bricks:
        for block in getattr(brick, "blocks", []):
            block.compile(dynamic=False, **options)


def uncompiled(used: bool) -> AbstractContextManager[Any]:
    """Where compiled blocks, if they are in use, run as they are: not worth graphs of their own."""
    return torch.compiler.set_stance("force_eager") if used else nullcontext()


@contextmanager
def telling_failure() -> Iterator[None]:
    """Raises ValueError, in one line, if torch cannot compile here."""
    try:
        yield
    except RuntimeError as error:
        from torch._dynamo.exc import BackendCompilerFailed  # takes seconds to import

        if not isinstance(error, BackendCompilerFailed):
            raise
        reason = " ".join(str(error.inner_exception).split())[:200]
        raise ValueError(f"torch.compile does not work here; go without it ({reason})") from error


def _estimates(
    stack: LegoStack,
    bricks: tuple[int, ...],
    noisy: Tensor,
    sigma: Tensor,
    labels: Tensor | None = None,
) -> list[Tensor]:
    return stack.estimates(noisy, sigma, labels, bricks)
