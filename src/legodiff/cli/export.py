"""``legodiff export``"""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from legodiff.cli.common import (
    check_place,
    choose_device,
    chosen_method,
    full_method,
    open_pipeline,
    parse_size,
    progress,
    say,
)
from legodiff.cli.options import (
    BudgetOption,
    GuidanceOption,
    IntervalOption,
    SamplerOption,
    SamplerOptions,
    SelfGuidanceOption,
    SkipOption,
    StepsOption,
    WeightsOption,
)

if TYPE_CHECKING:
    from legodiff.pipeline import LegoPipeline
    from legodiff.sampling import Method

FORMATS = ("torch-export", "onnx", "diffusers", "state-dict")
GRAPHS = FORMATS[:2]
ONLY = {
    **dict.fromkeys(("steps", "sampler", "guidance", "guidance_interval", "self_guidance"), GRAPHS),
    **dict.fromkeys(("option", "skip", "budget", "size"), GRAPHS),
    **dict.fromkeys(("layout", "dtype"), ("state-dict",)),
}
"""Options that only some formats have."""
MADE = ("sampling.json", "spec.json", "model_index.json")
"""One of these is in every folder that was exported: only such a folder is replaced."""


def export(
    context: typer.Context,
    run: Annotated[str, typer.Argument(help="Run or model folder, or a Hub id.")],
    to: Annotated[str, typer.Option(help="torch-export, onnx, diffusers or state-dict.")],
    out: Annotated[Path, typer.Option(help="Folder to make.")],
    steps: StepsOption = 18,
    sampler: SamplerOption = "heun",
    guidance: GuidanceOption = 1.0,
    guidance_interval: IntervalOption = None,
    self_guidance: SelfGuidanceOption = 1.0,
    option: SamplerOptions = None,
    skip: SkipOption = None,
    budget: BudgetOption = None,
    size: Annotated[
        str | None, typer.Option(help="HEIGHTxWIDTH of the images; the training size by default.")
    ] = None,
    layout: Annotated[
        str, typer.Option(help="Names of a state dict: legodiff, or the authors' lego or dit.")
    ] = "legodiff",
    dtype: Annotated[str, typer.Option(help="Of a state dict: fp32, bf16 or fp16.")] = "fp32",
    weights: WeightsOption = "ema",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an export.")] = False,
) -> None:
    """Write a model in a format that others read.

    torch-export and onnx: a graph for every set of bricks that the plan runs (all of them, without
    --skip and --budget), for any number of images, each held against the model; sampling.json and
    a README with a script that draws without legodiff. diffusers: a pipeline's folder. state-dict:
    safetensors and JSON.
    """
    from legodiff.interop.formats import require

    _check_words(context, to)
    if out.is_dir() and any(out.iterdir()):
        _check_replaced(out, overwrite)
    require(to)
    pipe = open_pipeline(run, choose_device("cpu"), weights=weights)
    pipe.stack.float()  # a file may hold halves, which few runtimes compute with on a CPU
    if to in GRAPHS:
        full = full_method(
            len(pipe.stack.bricks),
            *(steps, sampler, guidance, guidance_interval, self_guidance, option),
        )
        _graphs(pipe, chosen_method(pipe, full, skip, budget), size, to, out)
    elif to == "diffusers":
        _diffusers(pipe, out)
    else:
        _state_dict(pipe, layout, dtype, out)


def _check_words(context: typer.Context, to: str) -> None:
    """Raises ValueError for an unknown format, and for options that it does not have."""
    if to not in FORMATS:
        raise ValueError(f"--to {to}: choose from {', '.join(FORMATS)}")
    for name, formats in ONLY.items():
        source = context.get_parameter_source(name)
        if to not in formats and source is not None and source.name == "COMMANDLINE":
            word = name.replace("_", "-")
            raise ValueError(f"--{word} is for --to {' and '.join(formats)}, not {to}")


def _check_replaced(out: Path, overwrite: bool) -> None:
    """Raises ValueError unless a folder is an export that may go."""
    from legodiff.store import CONFIG

    a_model = (out / CONFIG).is_file()  # that was made of what was exported there
    if a_model or not any((out / name).is_file() for name in MADE):
        raise ValueError(f"{out} holds other files than an export; choose another --out")
    if not overwrite:
        raise ValueError(f"{out} holds an export already; choose another --out, or --overwrite")


def _bytes(pipe: "LegoPipeline") -> int:
    return sum(tensor.nbytes for tensor in pipe.stack.state_dict().values())


def _graphs(pipe: "LegoPipeline", method: "Method", size: str | None, to: str, out: Path) -> None:
    from legodiff import store
    from legodiff.interop.graph_folder import write_graphs
    from legodiff.interop.graphs import subsets

    canvas = pipe.canvas(parse_size(size))
    check_place(out, len(subsets(method, pipe.sampling)) * _bytes(pipe))
    with progress() as bar, store.whole_folder(out) as folder:
        graphs = write_graphs(pipe, method, canvas, to, folder, partial(bar, "exporting"))
    for graph in graphs:
        say(f"{out / graph.file}: largest difference from the model {graph.parity:.1e}")
    say(f"How to draw with {'them' if len(graphs) > 1 else 'it'}:  {out / 'README.md'}")


def _diffusers(pipe: "LegoPipeline", out: Path) -> None:
    from legodiff import store
    from legodiff.interop.diffusers_export import write_diffusers

    check_place(out, _bytes(pipe))
    with store.whole_folder(out) as folder:
        plain = write_diffusers(pipe, folder)
    more = "" if plain else ", trust_remote_code=True"
    say(f"Open it:  DiffusionPipeline.from_pretrained({str(out)!r}{more})")
    if not plain:
        say("It holds a pipeline of legodiff's, which must be installed there.")


def _state_dict(pipe: "LegoPipeline", layout: str, dtype: str, out: Path) -> None:
    from legodiff import store
    from legodiff.interop.state_dict import write_state_dict

    check_place(out, _bytes(pipe))
    with store.whole_folder(out) as folder:
        write_state_dict(pipe.stack, folder, layout, dtype)
    say(f"{out / 'model.safetensors'}, and what network it is of: {out / 'spec.json'}")
    if layout != "legodiff":
        heads = pipe.stack.spec.heads
        say(f"Back again:  legodiff import {out / 'model.safetensors'} OUT --heads {heads}")
