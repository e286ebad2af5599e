"""A stack as graphs that others run: one for every set of bricks, through torch.export or ONNX.

    noisy (B, C, H, W) float32, sigma (B,) float32, labels (B,) int64 -> estimate (B, C, H, W)

B is open, H and W are fixed; there are no labels without classes. Each graph is opened again and
held against the stack before anything is said of it.
"""

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from legodiff.model.spec import ForeignSpec, StackSpec
from legodiff.model.stack import LegoStack
from legodiff.sampling import Method, Sampling

SUFFIXES = {"torch-export": ".pt2", "onnx": ".onnx"}
INPUTS, OUTPUTS = ("noisy", "sigma", "labels"), ("estimate", "lowest")
MOST = 16
"""Graphs of one model, at most: each holds the weights of its bricks."""
TOLERANCE = 1e-4
LEVELS = 5  # noise levels at which a graph is checked
ONE_FILE = 2**31 - 2**24  # bytes; ONNX's format ends at 2 GB, and the graph takes some

Run = Callable[..., Sequence[Tensor]]


class Graph(NamedTuple):
    """A graph in a file, checked."""

    file: str
    bricks: tuple[int, ...]
    parity: float
    """Largest difference of its estimates from the stack's; where noise is predicted, of its
    noise, as the estimate is that noise times sigma."""


class Subset(nn.Module):
    """Some bricks of a stack as a function of tensors, the form that is traced."""

    def __init__(self, stack: LegoStack, bricks: tuple[int, ...], lowest: bool) -> None:
        """``lowest``: gives the estimate of brick 0 as well, for self-guidance."""
        super().__init__()
        self.stack, self.bricks = stack, bricks
        self.outputs = OUTPUTS if lowest and bricks[0] == 0 and len(bricks) > 1 else OUTPUTS[:1]

    def forward(
        self, noisy: Tensor, sigma: Tensor, labels: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        estimates = self.stack.estimates(noisy, sigma, labels, self.bricks)
        return (estimates[-1], estimates[0])[: len(self.outputs)]


def subsets(method: Method, sampling: Sampling) -> list[tuple[int, ...]]:
    """The sets of bricks that a method runs, in the order of their first use.

    Raises ValueError if there are more than ``MOST``.
    """
    found = list(dict.fromkeys(map(method.plan.bricks, method.levels(sampling))))
    if len(found) > MOST:
        raise ValueError(
            f"this method runs {len(found)} sets of bricks, and each becomes a graph; at most "
            f"{MOST}: choose another --budget, or --skip"
        )
    return found


def file_name(bricks: tuple[int, ...], kind: str) -> str:
    """ "bricks-0-2.onnx" for the bricks 0 and 2."""
    return f"bricks-{'-'.join(map(str, bricks))}{SUFFIXES[kind]}"


@torch.no_grad()
def write_graph(
    subset: Subset, canvas: tuple[int, int], sampling: Sampling, kind: str, folder: Path
) -> Graph:
    """Traces some bricks, writes the graph, opens the file, and checks what it gives.

    Raises ValueError, in one line, if torch cannot trace them, or if the graph differs.
    """
    path = folder / file_name(subset.bricks, kind)
    inputs = example(subset.stack.spec, torch.ones(2), canvas)
    try:
        with quiet():
            program = _traced(subset, inputs)
            run = (_to_pt2 if kind == "torch-export" else _to_onnx)(program, subset, path)
    except (OSError, MemoryError):
        raise
    except Exception as error:  # torch raises many kinds; the user needs one line
        reason = next((line for line in str(error).splitlines() if line.strip()), repr(error))
        raise ValueError(f"{path.name}: torch cannot export these bricks: {reason}") from error
    parity = _parity(subset, run, canvas, sampling)
    if not parity <= TOLERANCE:
        raise ValueError(
            f"{path.name} differs from the model by {parity:.1e}; {TOLERANCE:g} is allowed"
        )
    return Graph(path.name, subset.bricks, parity)


def example(spec: StackSpec, sigma: Tensor, canvas: tuple[int, int]) -> tuple[Tensor, ...]:
    """Random inputs of a graph at the noise levels of a batch, the same in every call."""
    generator = torch.Generator().manual_seed(0)
    shape = (len(sigma), spec.channels, *canvas)
    clean = spec.sigma_data * torch.randn(shape, generator=generator)
    noise = torch.randn(shape, generator=generator)
    inputs = (clean + sigma.view(-1, 1, 1, 1) * noise, sigma)
    if not spec.classes:
        return inputs
    return *inputs, torch.randint(spec.classes, sigma.shape, generator=generator)


def _traced(subset: Subset, inputs: tuple[Tensor, ...]) -> Any:
    open_batch = {0: torch.export.Dim.DYNAMIC}
    shapes = tuple(open_batch for _ in inputs)
    program = torch.export.export(subset, inputs, dynamic_shapes=shapes, strict=False)
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # lines of our source, with the paths of this machine
    return program


def _to_pt2(program: Any, subset: Subset, path: Path) -> Run:
    torch.export.save(program, path)
    run: Run = torch.export.load(path).module()
    return run


def _to_onnx(program: Any, subset: Subset, path: Path) -> Run:
    inputs = INPUTS[: 3 if subset.stack.spec.classes else 2]
    made: Any = torch.onnx.export(
        program, (), dynamo=True, verbose=False, input_names=inputs, output_names=subset.outputs
    )
    for node in made.model.graph:
        node.metadata_props.clear()  # about torch, and as large as a small network
    weights = sum(tensor.nbytes for tensor in subset.stack.state_dict().values())
    made.save(path, external_data=weights > ONE_FILE)
    session = import_module("onnxruntime").InferenceSession(
        path, providers=["CPUExecutionProvider"]
    )

    def run(*tensors: Tensor) -> list[Tensor]:
        given = {name: tensor.numpy() for name, tensor in zip(inputs, tensors, strict=True)}
        return [torch.from_numpy(array) for array in session.run(list(subset.outputs), given)]

    return run


def _parity(subset: Subset, run: Run, canvas: tuple[int, int], sampling: Sampling) -> float:
    """The largest difference over the noise levels, alone and in batches that mix three."""
    low, high = torch.tensor([sampling.sigma_min, sampling.sigma_max]).log()
    levels = torch.linspace(float(low), float(high), LEVELS).exp()
    off = []
    for number in range(LEVELS):
        for batch in (1, 3):  # other than the one that was traced
            sigma = levels.roll(number)[:batch]
            inputs = example(subset.stack.spec, sigma, canvas)
            unit = sigma.clamp(min=1) if _predicts_noise(subset.stack.spec) else sigma.new_ones(1)
            for own, other in zip(subset(*inputs), run(*inputs), strict=True):
                off.append(((own - other).abs() / unit.view(-1, 1, 1, 1)).max())
    return float(torch.stack(off).max())  # a NaN stays one


def _predicts_noise(spec: StackSpec) -> bool:
    for brick in spec.bricks:
        if isinstance(brick, ForeignSpec):
            inner = brick.network == "LegoStack" and StackSpec.from_dict(brick.config)
            if brick.prediction == "epsilon" or (inner and _predicts_noise(inner)):
                return True
    return spec.objective == "ddpm"


@contextmanager
def quiet() -> Iterator[None]:
    """Without what torch says to its developers while it traces."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
