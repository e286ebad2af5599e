import numpy as np
import pytest
from PIL import Image

from legodiff.codec import PixelCodec
from legodiff.config import load_config
from legodiff.train.distributed import World
from legodiff.train.inputs import fit_codec, open_inputs
from legodiff.train.loop import train


@pytest.fixture
def photos(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(5):
            pixels = rng.integers(0, 200, (24, 20, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{number}.png")
    return tmp_path / "photos"


def settings(photos, *changes):
    return load_config(
        "digits",
        [
            *("model.preset=tiny-pr-16", f"data.path={photos}", "train.images=32"),
            *("train.batch=8", "train.picture_images=0", *changes),
        ],
    )


def test_a_folder_becomes_data_of_the_models_size_and_a_codec_that_fits(photos):
    data, codec = open_inputs(settings(photos), None, World())
    assert (data.size, data.channels, len(data)) == ((16, 16), 3, 10)
    assert data.class_names == ("cat", "dog")
    pixels = np.stack([data.read(index)[0] for index in range(10)]) / 127.5 - 1
    mean = pixels.mean(axis=(0, 2, 3))
    assert codec.mean == pytest.approx(mean, abs=1e-6)
    spread = (pixels - mean[:, None, None]).std()
    assert codec.scale == pytest.approx(0.5 / spread, rel=1e-5)


def test_a_run_that_has_begun_keeps_its_codec(photos, tmp_path):
    config = settings(photos)
    data, _ = open_inputs(config, None, World())
    own = PixelCodec((0.1, 0.2, 0.3), 0.7)
    run = tmp_path / "run"
    train(config, data, own, run, say=lambda _: None)
    assert open_inputs(config, run, World())[1] == own
    assert open_inputs(config, None, World())[1] != own


def test_unreadable_images_are_left_out_of_the_statistics(photos):
    whole = fit_codec(open_inputs(settings(photos), None, World())[0], 0.5)
    (photos / "cat" / "broken.png").write_bytes(b"no image")
    assert fit_codec(open_inputs(settings(photos), None, World())[0], 0.5) == whole
    for path in photos.rglob("*.png"):
        path.write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"^not one image can be read; the last: [^\n]*$"):
        open_inputs(settings(photos, "data.channels=3"), None, World())


def test_a_vae_for_pixels_is_a_mistake(photos):
    with pytest.raises(ValueError, match=r"^data.vae is x, and [^\n]* holds no latents$"):
        open_inputs(settings(photos, "data.vae=x"), None, World())
