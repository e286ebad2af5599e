"""How good are its images? Frechet distance, precision, recall, and the nearest training images.

python examples/evaluate_a_model.py runs/demo --reference digits --samples 500
"""

import argparse
from pathlib import Path

import torch

from legodiff import LegoPipeline, SkipPlan
from legodiff.evaluate.evaluation import evaluate
from legodiff.evaluate.features import DIGITS, open_features
from legodiff.evaluate.images import drawn_images
from legodiff.sampling import Method
from legodiff.train.distributed import World


def main() -> None:
    """Draws, measures, and writes metrics.json and pictures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--reference", default="digits")
    parser.add_argument("--features", default=DIGITS, help="or pooled, inception, dinov2")
    parser.add_argument("--samples", type=int, default=500)
    parser.add_argument("--guidance", type=float, default=1.0)
    parser.add_argument("--out", type=Path, default=Path("metrics"))
    options = parser.parse_args()

    pipe = LegoPipeline.from_pretrained(options.model)
    spec = pipe.stack.spec
    method = Method(SkipPlan.full(len(spec.bricks)), guidance=options.guidance)
    labels: list[int | None] = [*range(spec.classes)] or [None]
    drawn = drawn_images(pipe, method, options.samples, labels, batch=50)
    network = open_features(options.features, None, torch.device("cpu"), drawn.size)
    found = evaluate(drawn, options.reference, network, World(), 50, options.out, "train")
    for metric in found.metrics:
        print(f"{metric.name:32} {metric.value:8.4f}  ({metric.better} is better)")
    for note in found.notes:
        print("note:", note)
    print(f"see {options.out}")


if __name__ == "__main__":
    main()
