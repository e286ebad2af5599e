"""What each choice of ``model/kernels.py`` is worth: forward passes with and without it, in turns.

    python benchmarks/kernels.py lego-s-pg-64 lite-pr-16 --batches 1 8
    python benchmarks/kernels.py lego-s-pg-64 --batches 2 --parts

On the CPU: as it is, which is GELU fused into its linear layer; torch's own layers; oneDNN for all
linear layers (the choice on AMD); short sequences that attend each on their own; geometry made anew
each time; all of it through torch.compile, also with its weights frozen into the code. Ratios are
to what the library does. With ``--parts`` where the time of a block of each brick goes instead:
linear layers, attention, and the rest.
"""

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from legodiff import LegoStack, preset
from legodiff.evaluate.bench import Candidate, Spread, alternate, product, ratio
from legodiff.evaluate.contenders import fresh, of_stack
from legodiff.model import brick, kernels, layers
from legodiff.model.compiled import CompiledStack
from legodiff.model.spec import BrickSpec, StackSpec

CPU = torch.device("cpu")


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

    def without_tiles(*given: Tensor) -> None:
        with instead(kernels, "rows_of_tile", lambda _: 1):
            stack(*given)

    kept: Any = brick.geometry

    def with_new_geometry(*given: Tensor) -> None:
        kept.cache_clear()
        stack(*given)

    found: dict[str, Callable[..., object]] = {
        "as it is": stack,
        "torch's own linear layers": with_plain,
        "oneDNN in every linear layer": with_one_dnn,
        "every sequence on its own": without_tiles,
        "geometry made anew": with_new_geometry,
    }
    if compile_too:
        found["compiled"] = CompiledStack(stack)
        found["compiled, weights frozen"] = CompiledStack(stack, options={"freezing": True})
    return found


def compare(name: str, batch: int, rounds: int, compile_too: bool) -> None:
    """Prints a row for each way to evaluate a preset."""
    spec = preset(name)
    stack = fresh(of_stack(name, spec))
    assert isinstance(stack, LegoStack)
    given = torch.randn(batch, spec.channels, *spec.image_size), torch.ones(batch)
    entries = [
        Candidate(what, partial(run, *given), batch, 0, 0)
        for what, run in ways(stack.eval(), compile_too).items()
    ]
    times = alternate(entries, rounds, device=CPU)
    for entry, own in zip(entries, times, strict=True):
        found, apart = Spread.of(own), ratio(own, times[0])
        print(
            f"| {name} | {batch} | {entry.name} | {found.median:.2f} "
            f"({found.low:.2f}-{found.high:.2f}) | {apart.median:.2f} |",
            flush=True,
        )


def take_apart(name: str, batch: int, rounds: int) -> None:
    """Prints a row for a block of each brick of a preset."""
    spec = preset(name)
    for number, one in enumerate(spec.bricks):
        assert isinstance(one, BrickSpec)
        patches, tokens = layout(spec, one)
        whole, linear, attention, ceiling = alternate(parts(spec, one, batch), rounds, device=CPU)
        count, width = patches * tokens, spec.width
        flops = ((8 + 4 * spec.mlp_ratio) * count * width**2, 4.0 * count * tokens * width)
        best = [2e-6 * 2048**3 / taken for taken in ceiling]  # FLOPs a ms, in millions
        cells = [f"{name}: brick {number}", f"{one.depth}", f"{patches} x {tokens}", f"{batch}"]
        cells.append(f"{Spread.of(whole).median:.2f}")
        for own, done in zip((linear, attention), flops, strict=True):
            speed = ratio([1e-6 * done / taken for taken in own], best).median
            cells += [f"{ratio(own, whole).median:.0%}", f"{speed:.0%}"]
        rest = [1 - (a + b) / c for a, b, c in zip(linear, attention, whole, strict=True)]
        every = ratio([1e-6 * sum(flops) / taken for taken in whole], best).median
        cells += [f"{Spread.of(rest).median:.0%}", f"{every:.0%}"]
        print(f"| {' | '.join(cells)} |", flush=True)


def layout(spec: StackSpec, brick: BrickSpec) -> tuple[int, int]:
    """Patches of an image, and tokens of a patch."""
    height, width = brick.patch(spec.image_size)
    patches = spec.image_size[0] * spec.image_size[1] // (height * width)
    return patches, height * width // brick.local**2


def parts(spec: StackSpec, brick: BrickSpec, batch: int) -> list[Candidate]:
    """A block of a brick; its four linear layers; its attention; and a large matrix product."""
    block = layers.Block(spec.width, spec.heads, spec.mlp_ratio)
    shape = (batch, *layout(spec, brick))
    tokens, condition = torch.randn(*shape, spec.width), torch.randn(batch, spec.width)
    heads = torch.randn(*shape, 3, spec.heads, spec.width // spec.heads)

    def linear() -> None:
        block.attention.qkv(tokens)
        block.attention.out(tokens)
        block.mlp(tokens)

    return [
        Candidate("block", lambda: block(tokens, condition), batch, 0, 0),
        Candidate("linear layers", linear, batch, 0, 0),
        Candidate("attention", lambda: kernels.attend(heads), batch, 0, 0),
        product(CPU, torch.float32),
    ]


def main() -> None:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("presets", nargs="+")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--parts", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    heads: tuple[str, ...] = ("model", "images", "way", "ms an image", "times as it is")
    if options.parts:
        heads = ("brick", "depth", "patches x tokens", "images", "ms an image of a block")
        heads += ("linear", "of the product", "attention", "of the product", "rest", "all together")
    print(f"| {' | '.join(heads)} |\n{'|---' * len(heads)}|")
    with torch.no_grad():
        for name in options.presets:
            for batch in options.batches:
                if options.parts:
                    take_apart(name, batch, options.rounds)
                else:
                    compare(name, batch, options.rounds, not options.no_compile)


if __name__ == "__main__":
    main()
