"""Judges of drawn digits: a classifier that reads them, and features to compare them in.

Both are scikit-learn's and learn from real digits only, the ones the diffusion model trains on.
"""

from dataclasses import dataclass

import numpy as np

from legodiff.data.digits import Digits
from legodiff.evaluate.frechet import frechet_distance

APART = 500  # real digits kept apart from the 1,000 that sets are compared with


@dataclass(frozen=True)
class Verdict:
    """What the judges say of a set of drawn digits."""

    accuracy: float
    """Share that the classifier reads as the class asked for."""
    fd: float
    """Fréchet distance to real digits in the features of a small network ("FD-digits")."""


class DigitJudges:
    """A support vector machine for reading, a small multilayer perceptron for features.

    The perceptron has 64 and 32 units with tanh, and learns to read; its features are the 32.
    """

    def __init__(self, size: int) -> None:
        from sklearn.model_selection import train_test_split
        from sklearn.neural_network import MLPClassifier
        from sklearn.svm import SVC
        from threadpoolctl import threadpool_limits

        real, held_out = Digits(size), Digits(size, "held-out")
        self.reader = SVC(C=10.0).fit(_flat(real.images), real.labels)
        self.network = MLPClassifier(
            (64, 32), activation="tanh", learning_rate_init=5e-3, max_iter=500, random_state=0
        )
        with threadpool_limits(1):  # many small products: more threads only wait for each other
            self.network.fit(_flat(real.images), real.labels)
        self.held_out_accuracy = float(self.reader.score(_flat(held_out.images), held_out.labels))
        """Share of held-out real digits that the classifier reads correctly."""
        self.reference, apart = train_test_split(
            self.features(real.images), test_size=APART, stratify=real.labels, random_state=0
        )
        self.floor = frechet_distance(apart, self.reference)
        """Distance between 500 real digits and the reference of 1,000 others."""

    def features(self, images: np.ndarray) -> np.ndarray:
        """uint8 images (N, 1, H, W) to the last hidden layer (N, 32)."""
        hidden = _flat(images)
        for weights, bias in zip(self.network.coefs_[:-1], self.network.intercepts_, strict=False):
            hidden = np.tanh(hidden @ weights + bias)
        return hidden

    def judge(self, images: np.ndarray, labels: np.ndarray) -> Verdict:
        """uint8 images (N, 1, H, W) that were asked to show ``labels`` (N,)."""
        read = self.reader.predict(_flat(images))
        distance = frechet_distance(self.features(images), self.reference)
        return Verdict(float((read == labels).mean()), distance)


def _flat(images: np.ndarray) -> np.ndarray:
    return images.reshape(len(images), -1) / 255.0
