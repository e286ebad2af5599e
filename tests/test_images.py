import numpy as np
import pytest
import torch
from PIL import Image

from legodiff import LegoPipeline, SkipPlan
from legodiff.data.digits import Digits
from legodiff.evaluate.images import drawn_images, open_canvases, open_images
from legodiff.sampling import Method

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (5, 8, 12, 3), np.uint8)


@pytest.fixture
def folder(tmp_path):
    for number, image in enumerate(PIXELS):
        Image.fromarray(image).save(tmp_path / f"{number}.png")
    return tmp_path


def test_images_of_a_folder_and_of_an_npz_are_the_same(folder, tmp_path):
    np.savez(tmp_path / "all.npz", arr_0=PIXELS, arr_1=np.zeros(5, np.int64))
    for path in (folder, tmp_path / "all.npz"):
        images = open_images(str(path))
        assert (images.count, images.channels, images.size) == (5, 3, (8, 12))
        assert torch.equal(images.read([3, 0]), torch.from_numpy(PIXELS[[3, 0]]).movedim(-1, 1))
    assert "centre crop" in open_images(str(folder)).about["transform"]
    grey = open_images(str(folder), (4, 4), 1).read([0])
    assert grey.shape == (1, 1, 4, 4)


def test_images_of_several_sizes_are_refused_unless_told_how_to_fit_them(folder):
    Image.fromarray(PIXELS[0, :4]).save(folder / "other.png")
    with pytest.raises(ValueError, match=r"other\.png is 4x12 and the first is 8x12; give --size"):
        open_images(str(folder)).read(range(6))
    assert open_images(str(folder), (8, 8)).read(range(6)).shape == (6, 3, 8, 8)


def test_what_sample_writes_is_read_without_its_grid(call, model, tmp_path):
    assert call("sample", model, "--seeds", "3-5", "--steps", 2, "--out", tmp_path / "s")[0] == 0
    images = open_images(str(tmp_path / "s"))
    assert images.count == 3
    assert (tmp_path / "s" / "grid.png").exists()
    made = images.about["made"]
    assert made["sampler"] == "heun"
    assert not {"seed", "label", "class"} & made.keys()


def test_digits_in_three_parts():
    counts = {part: open_images(part).count for part in ("digits", "digits:held-out", "digits:all")}
    assert counts == {"digits": 1500, "digits:held-out": 297, "digits:all": 1797}
    digits = open_images("digits", (16, 16))
    assert np.array_equal(digits.read([7])[0], Digits(16).images[7])
    assert digits.about["transform"] == "8x8 enlarged, bicubic"
    with pytest.raises(ValueError, match="digits:test is not known; choose from train, held-out"):
        open_images("digits:test")


def test_a_model_draws_the_same_images_in_any_order(model):
    pipe = LegoPipeline.from_pretrained(model)
    method = Method(SkipPlan.full(3), 2)
    images = drawn_images(pipe, method, 6, [3, None, 8], batch=2, first_seed=10)
    together = images.read(range(6))
    for position in (5, 0, 4):
        assert torch.equal(images.read([position])[0], together[position])
    own = pipe(labels=[8], seeds=[15], steps=2).images[0]
    assert np.array_equal(together[5, 0].numpy(), np.asarray(own))
    assert images.about["seeds"] == "10-15"
    assert images.about["labels"] == [3, None, 8]
    every = drawn_images(pipe, method, 6, range(10), batch=2)
    assert every.about["labels"] == "all 10 classes in turn"


def test_what_cannot_be_measured_is_one_line(tmp_path, folder):
    images = open_images(str(folder))
    assert images.first(2).count == 2
    with pytest.raises(ValueError, match="9 images are asked for, and there are 5"):
        images.first(9)
    np.savez(tmp_path / "a.npz", arr_0=PIXELS.astype(np.float32))
    with pytest.raises(ValueError, match=r"a\.npz: arr_0 is not an array of uint8 images"):
        open_images(str(tmp_path / "a.npz"))
    np.savez(tmp_path / "b.npz", mu=np.zeros(3))
    with pytest.raises(ValueError, match=r"b\.npz holds no arr_0"):
        open_images(str(tmp_path / "b.npz"))
    (tmp_path / "latents").mkdir()
    np.save(tmp_path / "latents" / "0.npy", np.zeros((4, 2, 2), np.float32))
    with pytest.raises(ValueError, match="holds latents; images are measured as pixels"):
        open_images(str(tmp_path / "latents"))
    with pytest.raises(ValueError, match=r"nowhere\.npz"):
        open_images(str(tmp_path / "nowhere.npz"))


def test_canvases_may_have_any_size(folder):
    Image.fromarray(PIXELS[0, :4, :, 0]).save(folder / "z.png")
    found = open_canvases(str(folder))
    assert [tuple(canvas.shape) for canvas in found] == [(3, 8, 12)] * 5 + [(3, 4, 12)]
    assert torch.equal(found[0], torch.from_numpy(PIXELS[0]).movedim(-1, 0))
    assert torch.equal(found[5][2], torch.from_numpy(PIXELS[0, :4, :, 0]))
    assert torch.equal(open_canvases(str(folder / "3.png"))[0], found[3])
