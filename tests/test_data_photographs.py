import numpy as np
import pytest
from PIL import Image

from legodiff.data import open_data
from legodiff.data.photographs import Photographs


def test_crops_are_the_same_each_time_and_at_every_size():
    small, large = Photographs(16), Photographs(64)
    assert len(small) == 8000
    for index in (0, 1, 7999):
        pixels, label = small.read(index, np.random.default_rng(3))
        assert np.array_equal(pixels, open_data("photographs", 16).read(index)[0])
        assert (pixels.shape, pixels.dtype, label) == ((3, 16, 16), np.uint8, index % 2)
        shrunk = large.read(index)[0].reshape(3, 16, 4, 16, 4).mean(axis=(2, 4))
        assert np.abs(shrunk - pixels).mean() < 6  # another filter, the same picture
    assert np.abs(small.read(0)[0].astype(int) - small.read(2)[0]).mean() > 10


def test_a_crop_as_it_was_cut_is_what_is_brought_to_size():
    crops = Photographs(16)
    for index in (0, 7999):
        cut = crops.crop(index)
        assert 64 <= cut.width == cut.height <= 128
        small = np.asarray(cut.resize((16, 16), Image.Resampling.LANCZOS))
        assert np.array_equal(np.moveaxis(small, -1, 0), crops.read(index)[0])


def test_what_they_are_not_is_one_line():
    for words in ({"size": (16, 32)}, {"size": 16, "channels": 1}, {"size": 16, "flip": True}):
        with pytest.raises(ValueError, match="photographs are square, in colour and not mirrored"):
            open_data("photographs", **words)
