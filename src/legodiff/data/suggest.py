"""What to train with, from what a collection of images is. Rules of thumb, each with its reason."""

import math
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

SIGMA_DATA = 0.5
EDM_MEAN, EDM_STD, EDM_SIZE = -1.2, 1.2, 64
DRAWN_MEAN = -0.8  # worked for handwritten digits at 16 x 16
DRAWN = 0.25  # share of pixels of one and the same value from which images count as drawn


class Row(NamedTuple):
    """A preset, and the images it is for."""

    preset: str
    size: int
    images: int
    """From so many images on."""
    step: int
    """Sizes must be a multiple of this."""
    bricks: str
    reason: str


ROWS = (
    Row("lite-pr-16", 16, 0, 8, "image/4, 8x8/4, 4x4/2", "learns in minutes on a CPU"),
    Row("lite-pr-32", 32, 0, 8, "image/4, 8x8/2", "most for its compute at 32 pixels"),
    Row("lite-pr-64", 64, 0, 16, "image/4, 16x16/4", "most for its compute on few images"),
    Row(
        *("lego-s-lite-64", 64, 50_000, 16, "image/4, 16x16/4"),
        "the same of the paper's small width, for 50,000 images or more; lite-pr-64 is cheaper",
    ),
    Row(
        *("lego-l-lite-64", 64, 500_000, 16, "image/4, 16x16/4"),
        "the same of the paper's large width, for 500,000 images or more, on several GPUs",
    ),
)
LARGE = "the lite stack has the fewest tokens; above 64 pixels, think of `legodiff data encode`"


@dataclass(frozen=True)
class Suggestion:
    """Settings for a first run. ``reasons`` has one sentence for each of the fields."""

    size: tuple[int, int]
    """(height, width)"""
    channels: int
    sigma_data: float
    """The deviation that the codec scales images to."""
    sigma_mean: float
    sigma_std: float
    """ln(sigma) in training is normal, of this mean and deviation."""
    preset: str
    bricks: str
    """Patch/token sizes in pixels, from the bottom to the top."""
    reasons: dict[str, str]
    command: str


def suggest_size(shorter: int, asked: tuple[int, int] | None) -> tuple[tuple[int, int], str]:
    """(height, width) and why; ``shorter``: the shorter side that half of the images reach."""
    if asked is None:
        size = max((row.size for row in ROWS if row.size <= shorter), default=ROWS[0].size)
        reason = f"half of the images have a short side of {shorter} pixels or more"
        return (size, size), reason + ("" if size <= shorter else "; no preset is smaller")
    step = _row(asked, 0).step
    height, width = (max(step, side // step * step) for side in asked)
    fits = (height, width) == asked
    return (height, width), "as asked" if fits else f"sides must be multiples of {step}"


def _row(size: tuple[int, int], count: int) -> Row:
    grid = max((row.size for row in ROWS if row.size <= min(size)), default=ROWS[0].size)
    count = count if size == (grid, grid) else 0
    return [row for row in ROWS if row.size == grid and row.images <= count][-1]


def suggest_noise(size: tuple[int, int], plain: float) -> tuple[float, str]:
    """Mean of ln(sigma) and why; ``plain``: the share of pixels of the most frequent value."""
    edge = math.sqrt(size[0] * size[1])
    mean, reason = EDM_MEAN, f"EDM's for photographs up to {EDM_SIZE} pixels"
    if plain > DRAWN:
        mean = DRAWN_MEAN
        reason = f"{plain:.0%} of the pixels have one value, so shapes show through more noise"
    if edge > EDM_SIZE:
        mean = round(mean + math.log(edge / EDM_SIZE), 2)
        reason += f"; shifted by ln({edge:.0f}/{EDM_SIZE}), as more pixels average more noise away"
    return mean, reason


def suggest(
    path: str,
    *,
    size: tuple[int, int],
    size_reason: str,
    count: int,
    channels: int,
    coloured: int,
    deviation: float,
    plain: float,
    settings: dict[str, object],
) -> Suggestion:
    """Settings and the command line, from the facts that ``legodiff.data.check`` finds.

    ``settings``: what must be set beside, such as {"data.alpha": "black"}.
    """
    row = _row(size, count)
    mean, noise_reason = suggest_noise(size, plain)
    settings = {
        "model.preset": row.preset,
        "train.sigma_mean": mean,
        "train.sigma_std": EDM_STD,
        **settings,
    }
    height, width = size
    name = Path(path.removeprefix("hf:")).name.split(".")[0].replace(":", "-") or "images"
    words = ["legodiff", "train", "--data", path, "--run", f"runs/{name}"]
    words += ["--size", str(height) if height == width else f"{height}x{width}"]
    for key, value in settings.items():
        words += ["--set", f"{key}={value}"]
    reasons = {
        "size": size_reason,
        "channels": f"{coloured:,} of {count:,} images are stored in colour",
        "sigma_data": f"the codec scales the deviation of {deviation:.3f} to it",
        "sigma_mean": noise_reason,
        "sigma_std": "EDM's",
        "preset": LARGE if min(size) > EDM_SIZE else row.reason,
        "bricks": "those of the preset, for images of its size",
    }
    return Suggestion(
        *(size, channels, SIGMA_DATA, mean, EDM_STD, row.preset, row.bricks, reasons),
        shlex.join(words),
    )
