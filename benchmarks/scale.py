"""How cost grows: with the image, the canvas, the batch, and the number of processes.

    python benchmarks/scale.py --out scale.json
    python benchmarks/scale.py --out scale.json --only processes

Networks of random weights, for what is drawn does not matter here. A figure goes beside the file.
Times are of one CPU core but for ``processes``, which starts `legodiff sample` in one process and
in two, each with one thread, on two numbers of images, and takes the difference: starting is not in
it.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch

from legodiff import LegoPipeline, LegoStack, SkipPlan, preset
from legodiff.evaluate.bench import about, measure, peak_memory
from legodiff.evaluate.contenders import Setting, candidates, fresh, of_stack
from legodiff.model.cost import subset_flops
from legodiff.pictures import new_figure, save_figure

CPU = torch.device("cpu")
MODEL, DRAWS = "lite-coarse-64", "lite-pr-16"
SIDES = (32, 64, 128, 256, 512)
CANVASES = ((64, 64), (128, 128), (256, 256), (256, 1024), (1024, 1024), (1024, 4096))
BATCHES = (1, 2, 4, 8, 16, 32, 64)
PROCESSES, IMAGES = (1, 2), (64, 320)
ROUNDS, TURNS = 5, 3

Row = dict[str, Any]


def images() -> list[Row]:
    """An evaluation of one image: the whole stack, and each of its bricks."""
    found = []
    for side in SIDES:
        entries = candidates(of_stack(MODEL, preset(MODEL)), Setting((side, side), 1, CPU))
        found += [row(one, {"side": side}) for one in measure(entries, ROUNDS, CPU)]
    return found


def row(measured: Any, key: Row) -> Row:
    """A row of a benchmark, with its median."""
    told = {"name": measured.name, "flops": measured.flops, "memory": measured.memory}
    return {**key, **told, "ms": median(measured.milliseconds)}


def batches() -> list[Row]:
    """An evaluation of more images at once."""
    found = []
    for batch in BATCHES:
        entry = candidates(of_stack(MODEL, preset(MODEL)), Setting((64, 64), batch, CPU))[0]
        found += [row(one, {"batch": batch}) for one in measure([entry], ROUNDS, CPU)]
    return found


def canvases() -> list[Row]:
    """A canvas in windows, in two evaluations; and its patch-brick alone, on all of it at once."""
    stack = fresh(of_stack(MODEL, preset(MODEL)))
    assert isinstance(stack, LegoStack)
    pipe = LegoPipeline(stack.eval())
    first = SkipPlan(((0.0, (0,)),))
    found = []
    pipe(seeds=0, steps=2, sampler="euler", size=CANVASES[0])  # what is only done once
    for size in CANVASES:
        for name, plan in (("all bricks", None), ("the image-brick alone", first)):

            def whole(size: tuple[int, int] = size, plan: SkipPlan | None = plan) -> int:
                drawn = pipe(seeds=0, steps=2, sampler="euler", size=size, plan=plan, batch=4)
                return drawn.flops

            key = {"size": size, "name": f"in windows, {name}, two evaluations"}
            found.append(key | costs(whole))
        noisy, sigma = torch.randn(1, 3, *size), torch.ones(1)

        def alone(noisy: torch.Tensor = noisy, sigma: torch.Tensor = sigma) -> int:
            with torch.no_grad():
                stack(noisy, sigma, bricks=(1,))
            return subset_flops(stack.spec, (1,), noisy.shape[2:])

        found.append({"size": size, "name": "the patch-brick alone on all of it"} | costs(alone))
    return found


def costs(run: Callable[[], int]) -> Row:
    """CPU time of a call that tells its FLOPs, and the memory of another."""
    began = time.process_time()
    flops = run()
    milliseconds = 1e3 * (time.process_time() - began)
    return {"flops": flops, "ms": milliseconds, "memory": peak_memory(run, CPU)}


def processes() -> list[Row]:
    """Images a second of `legodiff sample`, without what it takes to start, in turns."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model"
        stack = fresh(of_stack(DRAWS, preset(DRAWS, channels=1)))
        assert isinstance(stack, LegoStack)
        LegoPipeline(stack).save_pretrained(model)
        for turn in range(TURNS):
            for count in PROCESSES:
                few, many = (draw(model, count, images) for images in IMAGES)
                speed = (IMAGES[1] - IMAGES[0]) / (many - few)
                found.append({"turn": turn, "processes": count, "images a second": speed})
    return found


def draw(model: Path, processes: int, images: int) -> float:
    """Seconds in which so many processes draw so many images."""
    out = model.parent / f"{processes}-{images}"
    words = ["sample", str(model), "--seeds", f"0-{images - 1}", "--out", str(out)]
    start = ["-m", "torch.distributed.run", "--nproc-per-node", str(processes), "-m", "--"]
    began = time.perf_counter()
    subprocess.run(
        [sys.executable, *start, "legodiff", *words, "--batch", "16"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=True,
        capture_output=True,
    )
    seconds = time.perf_counter() - began
    shutil.rmtree(out)
    return seconds


PARTS: dict[str, Callable[[], list[Row]]] = {
    "images": images,
    "batches": batches,
    "canvases": canvases,
    "processes": processes,
}


def picture(path: Path, parts: dict[str, list[Row]]) -> None:
    """Time and memory over pixels, of images and of canvases."""
    figure = new_figure(11, 4)
    left, right = figure.subplots(1, 2)
    for part, marker in (("images", "o-"), ("canvases", "s--")):
        by_name: dict[str, list[Row]] = {}
        for one in parts.get(part, []):
            by_name.setdefault(one["name"], []).append(one)
        for name, rows in by_name.items():
            pixels = [r["side"] ** 2 if "side" in r else r["size"][0] * r["size"][1] for r in rows]
            label = f"{part}: {name}"
            left.plot(pixels, [r["ms"] for r in rows], marker, label=label)
            right.plot(pixels, [r["memory"] / 1e6 for r in rows], marker, label=label)
    left.set(xlabel="pixels", ylabel="milliseconds", xscale="log", yscale="log")
    right.set(xlabel="pixels", ylabel="MB of tensors at once", xscale="log", yscale="log")
    for panel in (left, right):
        panel.grid(alpha=0.3)
        if panel.lines:
            panel.legend(fontsize=7)
    save_figure(path, figure)


def main() -> None:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    kept = json.loads(options.out.read_text()) if options.out.exists() else {}
    for part in options.only:
        kept[part] = PARTS[part]()
        kept["about"] = about(CPU)
        options.out.write_text(json.dumps(kept, indent=1))
        for one in kept[part]:
            print(part, json.dumps(one), flush=True)
    picture(options.out.with_suffix(".png"), kept)


if __name__ == "__main__":
    main()
