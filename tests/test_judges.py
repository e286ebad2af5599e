import numpy as np
import pytest

from legodiff.data.digits import Digits
from legodiff.evaluate.digits import DigitJudges


@pytest.fixture(scope="module")
def judges():
    return DigitJudges(8)


def test_the_reader_reads_digits_it_never_saw(judges):
    held_out = Digits(8, "held-out")
    assert judges.held_out_accuracy > 0.96
    verdict = judges.judge(held_out.images, held_out.labels)
    assert verdict.accuracy == judges.held_out_accuracy
    assert judges.judge(held_out.images, (held_out.labels + 1) % 10).accuracy < 0.05


def test_distance_tells_real_from_spoilt(judges):
    held_out = Digits(8, "held-out")
    real = judges.judge(held_out.images, held_out.labels).fd
    noise = np.random.default_rng(0).integers(0, 256, held_out.images.shape).astype(np.uint8)
    mirrored = held_out.images[..., ::-1]
    one_class = held_out.images[held_out.labels == 3]
    assert judges.floor < real
    for spoilt in (noise, mirrored, one_class):
        assert judges.judge(spoilt, np.zeros(len(spoilt))).fd > 3 * real


def test_features_are_the_hidden_layer_behind_the_networks_answer(judges):
    """Independently: its last layer on top of the features gives its own probabilities."""
    images = Digits(8).images[:50]
    scores = judges.features(images) @ judges.network.coefs_[-1] + judges.network.intercepts_[-1]
    shares = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    expected = judges.network.predict_proba(images.reshape(50, -1) / 255)
    assert np.allclose(shares, expected)
