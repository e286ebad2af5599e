"""Train on a folder of images, and draw with what was learnt.

    python examples/train_on_a_folder.py photos/ runs/photos --images 200000

The folder may hold images, class folders, or be an archive. Called again, a run that was stopped
goes on where it was.
"""

import argparse
from pathlib import Path

from legodiff.config import load_config
from legodiff.pictures import grid, save_png
from legodiff.train.distributed import World
from legodiff.train.inputs import open_inputs
from legodiff.train.log import Status
from legodiff.train.loop import train


def main() -> None:
    """Trains, then draws sixteen images."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data")
    parser.add_argument("run", type=Path)
    parser.add_argument("--preset", default="lite-pr-32")
    parser.add_argument("--images", type=int, default=200_000)
    parser.add_argument("--batch", type=int, default=64)
    options = parser.parse_args()

    config = load_config(
        "images-32",
        options={
            "data.path": options.data,
            "model.preset": options.preset,
            "train.images": options.images,
            "train.batch": options.batch,
            "train.warmup_images": options.images // 20,
            "train.workers": 0,
        },
    )
    data, codec = open_inputs(config, options.run, World())
    print(f"{len(data):,} images of {data.size}, classes: {data.class_names or 'none'}")

    def show(status: Status) -> None:
        print(status, end="\r")

    pipe = train(config, data, codec, options.run, resume=True, on_log=show)

    classes: list[str | None] = [*pipe.class_names] or [None]
    labels = [classes[number % len(classes)] for number in range(16)]
    samples = pipe(labels=labels, seeds=range(16))
    save_png(options.run / "sixteen.png", grid(samples.images, columns=4))
    print(f"\nsee {options.run / 'sixteen.png'} and {options.run / 'loss.png'}")


if __name__ == "__main__":
    main()
