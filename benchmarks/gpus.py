"""What training would take on many GPUs: compute, communication and data, by a formula.

    python benchmarks/gpus.py lego-s-pg-64 lego-l-pg-64 lego-xl-pg-32 --batch 2048

Nothing is run here. FLOPs and parameters are counted; the rest are assumptions, which are options:
an H100 at 40 % of the 798 TFLOP/s that a large bf16 product made on one; 300 GB/s inside of a node
of eight; 320 GB/s from a node to others, which is eight cards of 400 Gbit/s at four fifths. A ring
through several nodes is as fast as the slower of the two.

    compute        images of a GPU x FLOPs of an image / (share x peak)
    communication  8 bytes x parameters x (n - 1) / n / bandwidth   (fp32 gradients, a ring)
    data           images a second x bytes of an image
    a step         a third of compute, forward; then the rest or communication, which overlap
"""

import argparse

from legodiff.config import load_config
from legodiff.model.cost import brick_parameters
from legodiff.train.estimate import training_flops

NODE = 8


def estimate(name: str, gpus: int, options: argparse.Namespace) -> list[str]:
    """A row of the table."""
    config = load_config("digits", [f"model.preset={name}", "train.patch_ratio=0.75"])
    latent = name.endswith("32")
    spec = config.model.spec(4 if latent else 3, 1000)
    flops = training_flops(spec, config.train)
    parameters = sum(brick_parameters(spec))
    images = options.batch / gpus
    compute = images * flops / (options.share * options.peak * 1e12)
    bandwidth = options.inside if gpus <= NODE else min(options.inside, options.beyond)
    talk = 8 * parameters * (gpus - 1) / gpus / (bandwidth * 1e9)
    step = compute / 3 + max(2 * compute / 3, talk)
    size = spec.channels * spec.image_size[0] * spec.image_size[1] * (2 if latent else 1)
    fewest = 1.5 * talk * options.share * options.peak * 1e12 / flops
    return [
        *(name, str(gpus), f"{parameters / 1e6:.0f} M", f"{flops / 1e9:.0f}", f"{images:g}"),
        *(f"{1e3 * compute:.0f}", f"{1e3 * talk:.0f}", f"{compute / step:.0%}"),
        *(f"{options.batch / step:,.0f}", f"{options.batch / step * size / 1e6:,.0f}"),
        f"{max(1, fewest):.0f}",
    ]


def main() -> None:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+")
    parser.add_argument("--gpus", type=int, nargs="+", default=[8, 256])
    parser.add_argument("--batch", type=int, default=2048, help="images of all GPUs together")
    parser.add_argument("--peak", type=float, default=798, help="TFLOP/s of a GPU")
    parser.add_argument("--share", type=float, default=0.4, help="of the peak that is reached")
    parser.add_argument("--inside", type=float, default=300, help="GB/s in a node")
    parser.add_argument("--beyond", type=float, default=320, help="GB/s of a node to others")
    options = parser.parse_args()
    head = ["model", "GPUs", "parameters", "GFLOPs an image", "images a GPU", "compute, ms"]
    head += ["communication, ms", "efficiency", "images/s", "data, MB/s", "fewest images a GPU"]
    print("| " + " | ".join(head) + " |")
    print("|---" * len(head) + "|")
    for name in options.models:
        for gpus in options.gpus:
            print("| " + " | ".join(estimate(name, gpus, options)) + " |")


if __name__ == "__main__":
    main()
