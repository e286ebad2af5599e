"""Any denoiser can be the lowest brick: here a function, with a small brick that learns above it.

    python examples/foreign_base.py --images 4000

The function is Wiener's estimate for white data, which knows nothing but the noise level. What it
misses the 4x4 brick on top of it learns from digits, in a minute.
"""

import argparse

import torch
from torch import Tensor

from legodiff import BrickSpec, LegoStack, StackSpec
from legodiff.codec import PixelCodec
from legodiff.data import open_data
from legodiff.diffusion.loss import brick_losses
from legodiff.model.spec import ForeignSpec


def wiener(noisy: Tensor, sigma: Tensor, labels: Tensor | None) -> Tensor:
    """The best linear estimate of data of deviation 0.5."""
    return noisy * 0.25 / (0.25 + sigma.view(-1, 1, 1, 1) ** 2)


def main() -> None:
    """Trains the brick on top; the base below it rests."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=4000)
    options = parser.parse_args()

    data = open_data("digits", (16, 16), 1)
    pixels = torch.stack([torch.from_numpy(data.read(at)[0]) for at in range(len(data))])
    codec = PixelCodec.fit(pixels.numpy(), 0.5)
    clean = codec.encode(pixels)

    bricks = (ForeignSpec("callable"), BrickSpec(4, 2, 2))
    stack = LegoStack(StackSpec((16, 16), channels=1, width=64, heads=2, bricks=bricks))
    stack.bricks[0].network = wiener  # type: ignore[assignment]
    optimizer = torch.optim.AdamW(stack.bricks[1].parameters(), lr=2e-3)
    draw = torch.Generator().manual_seed(0)
    for step in range(options.images // 40):
        chosen = clean[torch.randint(len(clean), (40,), generator=draw)]
        sigma = (torch.randn(40, generator=draw) * 1.2 - 1.2).exp()
        noise = torch.randn(chosen.shape, generator=draw)
        losses = brick_losses(stack, chosen, noise, sigma, None, bricks=(0, 1)).mean(1)
        optimizer.zero_grad()
        losses[1].backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if step % 20 == 0:
            below, above = losses.tolist()
            print(f"{40 * step:6,} images: the base's loss {below:.3f}, with the brick {above:.3f}")


if __name__ == "__main__":
    main()
