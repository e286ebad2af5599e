"""Seams and cost of canvases, on models of photograph crops.

    python benchmarks/canvas.py --crops crops
    legodiff train --data crops --run runs/crops-pr ...  (the whole line is in docs/sampling.md)
    python benchmarks/canvas.py runs/crops-pr --canvases 16 --out canvas.jsonl
    python benchmarks/canvas.py --table canvas.jsonl

The crops are of scikit-learn's two photographs, a temple and a flower: a class each.
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image


def write_crops(out: Path, count: int, side: int, seed: int = 0) -> None:
    """``count`` crops of each photograph, of 2 to 4 times the side, made small."""
    from sklearn.datasets import load_sample_images

    rng = np.random.default_rng(seed)
    photographs = load_sample_images()
    for name, pixels in zip(photographs.filenames, photographs.images, strict=True):
        photograph = Image.fromarray(pixels)
        folder = out / Path(name).stem
        folder.mkdir(parents=True, exist_ok=True)
        for number in range(count):
            large = int(rng.integers(2 * side, 4 * side + 1))
            left = int(rng.integers(photograph.width - large + 1))
            top = int(rng.integers(photograph.height - large + 1))
            crop = photograph.crop((left, top, left + large, top + large))
            crop.resize((side, side), Image.Resampling.LANCZOS).save(folder / f"{number:05d}.png")


def main() -> None:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--crops", type=Path)
    arguments = parser.parse_args()
    write_crops(arguments.crops, 4000, 32)


if __name__ == "__main__":
    main()
