"""Cost of a training step: a stack against a plain DiT of its width and depth, at 64x64.

    python benchmarks/step.py lego-s-pg-64 lego-s-pr-64 dit-s-2-64 --batch 4 --rounds 5

Each preset runs in a process of its own for its peak of memory, then all take turns in one process
for time: seconds of a step, forward, backward and update, as the median of the rounds and a ratio
to the last preset. `--ratio` is the share of the patches that is trained on.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch

from legodiff.codec import PixelCodec
from legodiff.config import load_config
from legodiff.train.distributed import World
from legodiff.train.estimate import training_flops
from legodiff.train.learner import Learner, build_learner, build_network


def make(preset: str, ratio: float, device: str) -> Learner:
    """A learner of a preset for colour images without classes."""
    changes = [f"model.preset={preset}", f"train.patch_ratio={ratio}"]
    config = load_config("digits", changes)
    network = build_network(config.model.spec(3, 0), 0)
    world = World(device=torch.device(device))
    return build_learner(network, PixelCodec((0.0, 0.0, 0.0)), config.train, world)


def step(learner: Learner, batch: int) -> None:
    """One training step on random images."""
    spec = learner.network.spec
    device = next(learner.network.parameters()).device
    images = torch.zeros(batch, 3, *spec.image_size, dtype=torch.uint8, device=device)
    labels = torch.zeros(batch, dtype=torch.int64, device=device)
    losses = learner.objective(images, labels, range(batch), range(len(spec.bricks)))
    learner.optimizer.zero_grad()
    losses.values.mean().backward()
    learner.optimizer.step()
    if device.type == "cuda":
        torch.cuda.synchronize()


def peak(preset: str, arguments: argparse.Namespace) -> int:
    """Bytes at most during two steps, less what the process held before them (Linux, CUDA)."""
    learner = make(preset, arguments.ratio, arguments.device)
    if arguments.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    before = _memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the most so far is forgotten
    for _ in range(2):
        step(learner, arguments.batch)
    if arguments.device == "cuda":
        return torch.cuda.max_memory_allocated()
    return _memory("VmHWM") - before


def _memory(name: str) -> int:
    """A size of this process in bytes, as Linux tells it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(name))


def main() -> None:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("presets", nargs="+")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--ratio", type=float, default=1.0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--peak", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peak:
        print(peak(arguments.presets[0], arguments))
        return
    options = ["--batch", str(arguments.batch), "--ratio", str(arguments.ratio)]
    options += ["--device", arguments.device, "--peak"]
    memory = {
        preset: int(subprocess.check_output([sys.executable, __file__, preset, *options]))
        for preset in arguments.presets
    }
    learners = {p: make(p, arguments.ratio, arguments.device) for p in arguments.presets}
    seconds: dict[str, list[float]] = {preset: [] for preset in learners}
    for _ in range(arguments.rounds + 1):
        for preset, learner in learners.items():
            began = time.perf_counter()
            step(learner, arguments.batch)
            seconds[preset].append(time.perf_counter() - began)
    last = arguments.presets[-1]
    settings = load_config("digits", [f"train.patch_ratio={arguments.ratio}"]).train
    flops = {p: training_flops(one.network.spec, settings) for p, one in learners.items()}
    print(
        f"| batch {arguments.batch}, ratio {arguments.ratio:g} | s a step | time | memory | FLOPs |"
    )
    print("|---|---|---|---|---|")
    for preset, times in seconds.items():
        ratio = np.median(np.divide(times[1:], seconds[last][1:]))
        print(
            f"| {preset} | {np.median(times[1:]):.2f} ({min(times[1:]):.2f}-{max(times[1:]):.2f}) "
            f"| {ratio:.2f} | {memory[preset] / memory[last]:.2f} ({memory[preset] / 1e6:,.0f} MB) "
            f"| {flops[preset] / flops[last]:.2f} |"
        )


if __name__ == "__main__":
    main()
