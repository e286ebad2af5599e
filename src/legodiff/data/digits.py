"""scikit-learn's handwritten digits: 1,797 real images of 8x8 that ship with the package."""

from typing import Literal

import numpy as np
from PIL import Image

HELD_OUT = 297


class Digits:
    """The digits at ``size`` x ``size`` pixels, split into 1,500 to learn from and 297 held out.

    The split is a fixed random one. Images are enlarged bicubically; grey, 0 is the background.
    """

    channels = 1
    class_names = tuple("0123456789")

    def __init__(self, size: int, part: Literal["train", "held-out"] = "train") -> None:
        try:
            from sklearn.datasets import load_digits
        except ImportError as error:
            raise ValueError(
                "the digits come with scikit-learn, which is not installed; "
                "run: pip install 'legodiff[demo]'"
            ) from error
        loaded = load_digits()
        order = np.random.default_rng(0).permutation(len(loaded.target))
        chosen = order[HELD_OUT:] if part == "train" else order[:HELD_OUT]
        grey = np.round(loaded.images[chosen] * (255 / 16)).astype(np.uint8)
        self.images = np.stack(
            [
                np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC))
                for image in grey
            ]
        )[:, None]
        """uint8 (N, 1, size, size)"""
        self.size = (size, size)
        self.labels = loaded.target[chosen].astype(np.int64)

    def __len__(self) -> int:
        return len(self.images)

    def read(self, index: int, rng: np.random.Generator | None = None) -> tuple[np.ndarray, int]:
        """The same for every ``rng``."""
        return self.images[index], int(self.labels[index])
