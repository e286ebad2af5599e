"""What each choice of ``model/kernels.py`` is worth: forward passes with and without it, in turns.

    python benchmarks/kernels.py lego-s-pg-64 lite-pr-16 --batches 1 8

On the CPU: as it is, which is GELU fused into its linear layer; torch's own layers; oneDNN for all
linear layers (the choice on AMD); geometry made anew each time; all of it through torch.compile,
also with its weights frozen into the code. Ratios are to what the library does.
"""

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from legodiff import LegoStack, preset
from legodiff.evaluate.bench import Candidate, Spread, alternate, ratio
from legodiff.evaluate.contenders import fresh, of_stack
from legodiff.model import brick, kernels, layers
from legodiff.model.compiled import CompiledStack


def plain(x: Tensor, weight: Tensor, bias: Tensor, gelu: bool = False) -> Tensor:
    """The linear layer as torch has it."""
    out = F.linear(x, weight, bias)
    return F.gelu(out, approximate="tanh") if gelu else out


@contextmanager
def instead(owner: object, name: str, value: object) -> Iterator[None]:
    """Something else in a place, for a while."""
    kept = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, kept)


def ways(stack: LegoStack, compile_too: bool) -> dict[str, Callable[..., object]]:
    """Name -> how to evaluate a stack."""

    def with_plain(*given: Tensor) -> None:
        with instead(layers, "linear", plain):
            stack(*given)

    def with_one_dnn(*given: Tensor) -> None:
        with instead(kernels, "prefers_one_dnn", lambda: True):
            stack(*given)

    def with_new_geometry(*given: Tensor) -> None:
        brick.geometry.cache_clear()
        stack(*given)

    found: dict[str, Callable[..., object]] = {
        "as it is": stack,
        "torch's own linear layers": with_plain,
        "oneDNN in every linear layer": with_one_dnn,
        "geometry made anew": with_new_geometry,
    }
    if compile_too:
        found["compiled"] = CompiledStack(stack)
        found["compiled, weights frozen"] = CompiledStack(stack, options={"freezing": True})
    return found


def main() -> None:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("presets", nargs="+")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--no-compile", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print("| model | images | way | ms an image | times as it is |\n|---|---|---|---|---|")
    for name in options.presets:
        spec = preset(name)
        stack = fresh(of_stack(name, spec))
        assert isinstance(stack, LegoStack)
        for batch in options.batches:
            given = torch.randn(batch, spec.channels, *spec.image_size), torch.ones(batch)
            entries = [
                Candidate(what, partial(run, *given), batch, 0, 0)
                for what, run in ways(stack.eval(), not options.no_compile).items()
            ]
            with torch.no_grad():
                times = alternate(entries, options.rounds, device=torch.device("cpu"))
            for entry, own in zip(entries, times, strict=True):
                found, apart = Spread.of(own), ratio(own, times[0])
                print(
                    f"| {name} | {batch} | {entry.name} | {found.median:.2f} "
                    f"({found.low:.2f}-{found.high:.2f}) | {apart.median:.2f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
