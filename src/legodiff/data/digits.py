"""scikit-learn's handwritten digits: 1,797 real images of 8x8 that ship with the package."""

import numpy as np
from PIL import Image

HELD_OUT = 297
PARTS = {"train": slice(HELD_OUT, None), "held-out": slice(HELD_OUT), "all": slice(None)}
"""Of the digits in the fixed random order."""


class Digits:
    """The digits at ``size`` x ``size`` pixels: 1,500 to learn from, 297 held out, or all.

    The split is a fixed random one. Images are enlarged bicubically; grey, 0 is the background.
    Raises ValueError for another part.
    """

    channels, transform = 1, "8x8 enlarged, bicubic"
    class_names = tuple("0123456789")

    def __init__(self, size: int, part: str = "train") -> None:
        if part not in PARTS:
            raise ValueError(f"digits:{part} is not known; choose from {', '.join(PARTS)}")
        try:
            from sklearn.datasets import load_digits
        except ImportError as error:
            raise ValueError(
                "the digits come with scikit-learn, which is not installed; "
                "run: pip install 'legodiff[demo]'"
            ) from error
        loaded = load_digits()
        order = np.random.default_rng(0).permutation(len(loaded.target))
        chosen = order[PARTS[part]]
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
