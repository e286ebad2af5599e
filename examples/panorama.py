"""A wide picture of two classes that fade into each other, and whose ends meet.

python examples/panorama.py runs/scenes --labels temple flower --size 96 384 --out wide.png
"""

import argparse
from pathlib import Path

from legodiff import LegoPipeline, SkipPlan
from legodiff.diffusion.regions import across, default_blend
from legodiff.pictures import save_png
from legodiff.sampling import Method


def main() -> None:
    """Draws it in windows that shift from noise level to noise level."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--labels", nargs="+", default=["0", "1"])
    parser.add_argument("--size", type=int, nargs=2, default=(96, 384), metavar=("H", "W"))
    parser.add_argument("--steps", type=int, default=18)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("wide.png"))
    options = parser.parse_args()

    pipe = LegoPipeline.from_pretrained(options.model)
    size = (options.size[0], options.size[1])
    canvas = pipe.canvas(size)  # in the model's own pixels; other than these for latents
    wrap = (False, True)  # top and bottom do not meet, left and right do
    windows = pipe.windows(canvas, wrap=wrap)
    named = [int(label) if label.isdecimal() else label for label in options.labels]
    classes = [pipe.label_index(label) for label in named]
    known = [label for label in classes if label is not None]
    regions = across(known, canvas, default_blend(pipe.stack.spec.image_size), wrap)
    method = Method(SkipPlan.full(len(pipe.stack.spec.bricks)), options.steps)

    nfe, flops = pipe.cost(method, canvas, windows, regions)
    print(f"about {nfe:,} evaluations and {flops / 1e9:.3g} GFLOPs")
    drawn = pipe.render(method, seeds=options.seed, size=size, windows=windows, regions=regions)
    save_png(options.out, drawn.images[0], {"seed": options.seed, **method.to_dict()})
    print(f"{drawn.nfe:,} evaluations, {drawn.seconds:.1f} s; see {options.out}")


if __name__ == "__main__":
    main()
