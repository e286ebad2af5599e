"""A folder of graphs, and beside them all that it takes to draw without us.

``sampling.json`` says which graph is called at which noise level, and how an image comes of it; the
README shows it in a script.
"""

import json
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from legodiff import __version__, store
from legodiff.codec import LatentCodec
from legodiff.interop.formats import FORMATS, require
from legodiff.interop.graphs import Graph, Subset, subsets, write_graph
from legodiff.interop.script import script
from legodiff.model.spec import ForeignSpec
from legodiff.pipeline import LegoPipeline
from legodiff.sampling import Method

SAMPLING, README = "sampling.json", "README.md"
FORMAT = "legodiff-export-1"


def write_graphs(
    pipe: LegoPipeline,
    method: Method,
    canvas: tuple[int, int],
    kind: str,
    folder: Path,
    show: Callable[[int, int], None],
) -> list[Graph]:
    """Writes a graph for every set of bricks of a method, ``sampling.json`` and a README.

    Args:
        pipe: the model, on the CPU and in float32.
        method: how it draws.
        canvas: (height, width) in the model's space; its bricks must divide it.
        kind: "onnx" or "torch-export".
        folder: where.
        show: told the graphs done, and of how many.

    Raises ValueError, in one line, for what cannot be exported, or differs then.
    """
    require(kind)
    pipe.check_guidance(method.guidance)
    pipe.stack.check_saved()
    pipe.stack.spec.check_canvas(canvas)
    graphs: list[Graph] = []
    chosen = subsets(method, pipe.sampling)
    for bricks in chosen:
        show(len(graphs), len(chosen))
        subset = Subset(pipe.stack, bricks, lowest=method.self_guidance != 1)
        graphs.append(write_graph(subset, canvas, pipe.sampling, kind, folder))
    show(len(graphs), len(chosen))
    about = sampling_data(pipe, method, canvas, kind, graphs)
    text = json.dumps(about, indent=1, allow_nan=False)
    store.write_atomically(folder / SAMPLING, text.encode() + b"\n")
    store.write_atomically(folder / README, _readme(pipe, method, kind, graphs).encode())
    return graphs


def sampling_data(
    pipe: LegoPipeline,
    method: Method,
    canvas: tuple[int, int],
    kind: str,
    graphs: Sequence[Graph],
) -> dict[str, Any]:
    """How an image is drawn with graphs, as JSON data."""
    spec, files = pipe.stack.spec, {graph.bricks: graph.file for graph in graphs}
    versions = {"torch": torch.__version__, **{name: version(name) for name in FORMATS[kind]}}
    brick = spec.bricks[0]
    has_no_class = spec.classes and not (isinstance(brick, ForeignSpec) and not brick.no_class)

    def call(sigma: float) -> dict[str, Any]:
        guided = method.guides(sigma)
        return {
            "sigma": sigma,
            "file": files[method.plan.bricks(sigma)],
            "guidance": method.guidance if guided else 1.0,
            "self_guidance": method.self_guidance if guided else 1.0,
        }

    return {
        "format": FORMAT,
        "model": pipe.fingerprint,
        "software": {"legodiff": __version__, **versions},
        "image": {"channels": spec.channels, "height": canvas[0], "width": canvas[1]},
        "codec": pipe.codec.to_dict(),
        "classes": spec.classes,
        "no_class": spec.classes if has_no_class else None,
        "class_names": list(pipe.class_names),
        "sampler": method.sampler,
        "options": method.to_dict().get("options", {}),
        "sigmas": pipe.sampling.sigmas(method.steps, method.sampler).tolist(),
        "calls": [call(sigma) for sigma in method.levels(pipe.sampling)],
        "graphs": {
            graph.file: {"bricks": list(graph.bricks), "parity": graph.parity} for graph in graphs
        },
    }


def _readme(pipe: LegoPipeline, method: Method, kind: str, graphs: Sequence[Graph]) -> str:
    latents = isinstance(pipe.codec, LatentCodec)
    what = "ONNX" if kind == "onnx" else "torch.export"
    rows = "\n".join(
        f"| `{graph.file}` | {', '.join(map(str, graph.bricks))} | {graph.parity:.1e} |"
        for graph in graphs
    )
    labels = " and `labels` (B,) int64" if pipe.stack.spec.classes else ""
    return f"""\
# A diffusion model as {what} graphs

Each graph takes `noisy` (B, C, H, W) float32, `sigma` (B,) float32{labels}, and gives
the `estimate` (B, C, H, W) of the clean images, for any number B of images that are
clean + sigma * unit noise.

| graph | bricks | largest difference from the model |
|---|---|---|
{rows}

`sampling.json` has the noise levels of an image, for each call of the network the graph and the
guidance, and the way to {"latents" if latents else "pixels"}. This script draws with
{method.sampler}; run it in this folder:

```python
{script(kind, method, latents)}```

legodiff draws the same image from the noise of a seed, which is
`torch.randn(shape, generator=torch.Generator().manual_seed(seed))`.
"""
