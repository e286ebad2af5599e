"""What does a smaller budget cost? The same seeds with less and less compute, side by side.

    python examples/budget_sweep.py runs/demo --guidance 1.5 --out budgets.png

`legodiff plan runs/demo --guidance 1.5` first, for the best that a budget buys; without it the
paper's rule is followed.
"""

import argparse
from pathlib import Path

import numpy as np

from legodiff import LegoPipeline
from legodiff.drawing import Samples
from legodiff.pictures import captioned, grid, save_png


def main() -> None:
    """Draws with each budget, and tells how far the pictures are from the full ones."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--budgets", type=float, nargs="+", default=[1.0, 0.8, 0.6, 0.4, 0.2])
    parser.add_argument("--guidance", type=float, default=1.0)
    parser.add_argument("--out", type=Path, default=Path("budgets.png"))
    options = parser.parse_args()

    pipe = LegoPipeline.from_pretrained(options.model)
    classes = pipe.stack.spec.classes
    labels = [number % classes if classes else None for number in range(20)]
    panels, full = [], None
    for budget in options.budgets:
        try:
            drawn = pipe(
                labels=labels,
                seeds=range(20),
                guidance=options.guidance,
                budget=None if budget == 1 else budget,
            )
        except ValueError as error:  # there is no plan so cheap
            print(f"{budget:4.0%}  {error}")
            continue
        full = full or drawn
        away = np.mean([difference(drawn, full, number) for number in range(20)])
        line = f"{budget:4.0%}  {drawn.flops / 1e6:8.0f} MFLOPs  {1e3 * drawn.seconds:6.1f} ms"
        print(f"{line}  {away:5.2f} grey levels from the first")
        panels.append((f"{budget:.0%}: {drawn.flops / 1e6:.0f} MFLOPs", grid(drawn.images, 4)))
    save_png(options.out, captioned(panels))
    print(f"see {options.out}")


def difference(one: Samples, other: Samples, at: int) -> float:
    """The root of the mean squared difference of two images, in grey levels."""
    pixels = [np.asarray(samples.images[at], np.float64) for samples in (one, other)]
    return float(np.sqrt(np.mean((pixels[0] - pixels[1]) ** 2)))


if __name__ == "__main__":
    main()
