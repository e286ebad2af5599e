"""Crops of scikit-learn's two photographs, a temple and a flower: a class each, in colour."""

import numpy as np
from PIL import Image

CROPS = 4000  # of each photograph
LARGEST = 0.3  # side of a crop, as a share of the photograph's height, at most; half at least


class Photographs:
    """8,000 square crops at ``size`` x ``size`` pixels; the same ones at every size and each time.

    Texture without objects: for canvases, and as a second small data set beside the digits.
    """

    channels, transform = 3, "square crops, Lanczos"
    class_names = ("temple", "flower")

    def __init__(self, size: int) -> None:
        try:
            from sklearn.datasets import load_sample_images
        except ImportError as error:
            raise ValueError(
                "the photographs come with scikit-learn, which is not installed; "
                "run: pip install 'legodiff[demo]'"
            ) from error
        self.size = (size, size)
        self.photographs = [Image.fromarray(pixels) for pixels in load_sample_images().images]
        self.labels = np.arange(len(self)) % len(self.photographs)
        """int64 (N,)"""

    def __len__(self) -> int:
        return len(self.photographs) * CROPS

    def read(self, index: int, rng: np.random.Generator | None = None) -> tuple[np.ndarray, int]:
        """The same for every ``rng``."""
        pixels = np.asarray(self.crop(index).resize(self.size, Image.Resampling.LANCZOS))
        return np.ascontiguousarray(np.moveaxis(pixels, -1, 0)), int(self.labels[index])

    def crop(self, index: int) -> Image.Image:
        """A crop as it was cut, before it is brought to ``size``."""
        chance = np.random.default_rng([7, index])
        photograph: Image.Image = self.photographs[self.labels[index]]
        side = int(photograph.height * LARGEST * chance.uniform(0.5, 1))
        left = int(chance.integers(photograph.width - side + 1))
        top = int(chance.integers(photograph.height - side + 1))
        return photograph.crop((left, top, left + side, top + side))
