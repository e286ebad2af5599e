import json

import numpy as np
import pytest
import torch

from legodiff.codec import PixelCodec, to_pil


def test_the_default_is_plain_minus_one_to_one():
    pixels = torch.tensor([0, 127, 255], dtype=torch.uint8).view(1, 3, 1, 1)
    encoded = PixelCodec().encode(pixels).flatten().tolist()
    assert encoded == pytest.approx([-1, -1 / 255, 1])


@pytest.mark.parametrize("codec", [PixelCodec(), PixelCodec((-0.5, 0.1, 0.9), 1.7)])
def test_all_256_values_survive(codec):
    pixels = torch.arange(256, dtype=torch.uint8).repeat(3, 1).view(1, 3, 16, 16)
    assert torch.equal(codec.decode(codec.encode(pixels)), pixels)


def test_decoding_clips():
    decoded = PixelCodec((0.0,)).decode(torch.tensor([-9.0, 9.0]).view(1, 1, 1, 2))
    assert decoded.flatten().tolist() == [0, 255]


def test_fit_gives_mean_zero_and_the_wanted_deviation():
    images = np.random.default_rng(0).integers(30, 90, (200, 3, 8, 8)).astype(np.uint8)
    images[:, 1] += 100
    encoded = PixelCodec.fit(images, 0.5).encode(torch.from_numpy(images))
    assert torch.allclose(encoded.mean(dim=(0, 2, 3)), torch.zeros(3), atol=1e-4)
    assert encoded.std().item() == pytest.approx(0.5, rel=1e-3)
    with pytest.raises(ValueError, match="same value"):
        PixelCodec.fit(np.full((3, 1, 4, 4), 7, np.uint8), 0.5)


def test_it_survives_json_and_refuses_others():
    codec = PixelCodec((0.25,), 1.5)
    assert PixelCodec.from_dict(json.loads(json.dumps(codec.to_dict()))) == codec
    for wrong in ({"kind": "vae"}, {"kind": "pixels", "mean": [0], "scale": 1, "gamma": 2}):
        with pytest.raises(ValueError, match="codec"):
            PixelCodec.from_dict(wrong)


def test_pil_images_are_height_by_width():
    grey, colour = to_pil(torch.zeros(1, 1, 4, 6, dtype=torch.uint8))[0], None
    pixels = torch.arange(3 * 4 * 6, dtype=torch.uint8).view(1, 3, 4, 6)
    colour = to_pil(pixels)[0]
    assert (grey.mode, grey.size) == ("L", (6, 4))
    assert (colour.mode, colour.size) == ("RGB", (6, 4))
    assert colour.getpixel((5, 2)) == tuple(pixels[0, :, 2, 5].tolist())
