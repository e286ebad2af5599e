"""Trains presets on digits, each for several seeds, and judges what they draw.

    python benchmarks/digits.py lite-pr-16 lite-dit-16 --seeds 0 1 2

A row for each run and guidance scale: accuracy, FD-digits, MFLOPs an image, seconds of training.
The recipe and the judges are those of `legodiff demo`; only the preset differs.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np

from legodiff.codec import PixelCodec
from legodiff.config import load_config
from legodiff.data.digits import Digits
from legodiff.evaluate.digits import DigitJudges
from legodiff.train.loop import train

DRAWN = 500


def measure(preset: str, seed: int, changes: list[str]) -> None:
    """Trains one model in a temporary folder and prints its rows."""
    config = load_config("digits", [*changes, f"model.preset={preset}", f"train.seed={seed}"])
    spec = config.model.spec(channels=1, classes=10)
    data, judges = Digits(spec.image_size[0]), DigitJudges(spec.image_size[0])
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        codec = PixelCodec.fit(data.images, spec.sigma_data)
        pipe = train(config, data, codec, Path(folder), say=lambda _: None)
        seconds = time.perf_counter() - began
    for guidance in (1.0, 1.5):
        labels = [number % 10 for number in range(DRAWN)]
        samples = pipe(labels=labels, seeds=range(DRAWN), guidance=guidance, batch=100)
        pixels = np.stack([np.asarray(image)[None] for image in samples.images])
        verdict = judges.judge(pixels, np.array(labels))
        print(
            f"{preset:14} seed {seed}  guidance {guidance:<4g} accuracy {verdict.accuracy:6.1%}  "
            f"FD-digits {verdict.fd:5.2f}  {samples.flops / 1e6:6,.0f} MFLOPs  {seconds:4.0f} s",
            flush=True,
        )


def main() -> None:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("presets", nargs="+")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--set", dest="changes", action="append", default=[])
    arguments = parser.parse_args()
    for preset in arguments.presets:
        for seed in arguments.seeds:
            measure(preset, seed, arguments.changes)


if __name__ == "__main__":
    main()
