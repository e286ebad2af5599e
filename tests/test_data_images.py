import io

import numpy as np
import pytest
from PIL import Image

from legodiff.data import Unreadable
from legodiff.data.images import Pictures, fit, infer_channels, open_image
from legodiff.data.sources import Source

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (5, 7, 3), dtype=np.uint8)
GREY = RNG.integers(0, 256, (5, 7), dtype=np.uint8)


class Listed:
    """A source of encoded images or other bytes."""

    def __init__(self, items):
        self.items = items

    def __call__(self, index):
        return self.items[index]


def source(*items):
    names = [f"{i}.png" for i in range(len(items))]
    return Source("test", "here", names, np.arange(len(items)), (), Listed(items))


def encoded(image, kind="PNG", **options):
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def read(image, kind="PNG", channels=3, alpha="white", size=(5, 7), **options):
    return Pictures(source(encoded(image, kind, **options)), size, channels, alpha=alpha).read(0)[0]


def luma(rgb):
    red, green, blue = np.moveaxis(rgb.astype(np.int64), -1, 0)
    return (red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16  # ITU-R 601


def test_colour_and_grey():
    assert np.array_equal(read(Image.fromarray(RGB)), RGB.transpose(2, 0, 1))
    assert np.array_equal(read(Image.fromarray(GREY), channels=1), GREY[None])
    assert np.array_equal(read(Image.fromarray(GREY)), np.stack([GREY] * 3))
    assert np.array_equal(read(Image.fromarray(RGB), channels=1), luma(RGB)[None])


def test_one_bit_and_palette():
    bits = GREY > 127
    assert np.array_equal(read(Image.fromarray(bits), channels=1), bits[None] * np.uint8(255))
    palette = RNG.integers(0, 256, (256, 3), dtype=np.uint8)
    image = Image.fromarray(GREY)
    image.putpalette(palette.tobytes())
    assert image.mode == "P"
    assert np.array_equal(read(image), palette[GREY].transpose(2, 0, 1))
    see_through = read(image, transparency=int(GREY[2, 3]), alpha="#102030")
    expected = palette[GREY]
    expected[GREY[2, 3] == GREY] = (16, 32, 48)
    assert np.array_equal(see_through, expected.transpose(2, 0, 1))


@pytest.mark.parametrize(
    ("alpha", "behind"),
    [("white", (255, 255, 255)), ("black", (0, 0, 0)), ("#204080", (32, 64, 128))],
)
def test_transparent_pixels_lie_on_the_background(alpha, behind):
    opacity = RNG.integers(0, 256, (5, 7, 1))
    image = Image.fromarray(np.concatenate([RGB, opacity], -1).astype(np.uint8))
    mixed = np.round((RGB * opacity + np.array(behind) * (255 - opacity)) / 255)
    assert np.array_equal(read(image, alpha=alpha), mixed.transpose(2, 0, 1))


def test_grey_with_transparency():
    opacity = RNG.integers(0, 256, (5, 7))
    image = Image.fromarray(np.stack([GREY, opacity], -1).astype(np.uint8))
    assert image.mode == "LA"
    mixed = np.round(GREY * opacity / 255)
    assert np.array_equal(read(image, channels=1, alpha="black"), mixed[None])
    assert np.array_equal(read(image, channels=3, alpha="black"), np.stack([mixed] * 3))


def test_transparent_colour_of_a_png_without_alpha():
    image = Image.fromarray(RGB)
    key = tuple(int(v) for v in RGB[1, 2])
    expected = RGB.copy()
    expected[1, 2] = 0
    assert np.array_equal(read(image, transparency=key, alpha="black"), expected.transpose(2, 0, 1))


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bits_are_scaled_from_their_full_range(kind):
    wide = np.array([[0, 128, 129, 256], [257, 32768, 65406, 65535]], np.uint16)
    image = Image.fromarray(wide)
    assert image.mode == "I;16"
    assert read(image, kind, 1, size=(2, 4)).tolist() == [[[0, 0, 1, 1], [1, 128, 254, 255]]]
    assert (read(image, kind, 3, size=(2, 4)) == read(image, kind, 1, size=(2, 4))).all()


def test_32_bits_within_16_are_read_and_others_refused():
    wide = np.array([[0, 257], [25700, 65535]], np.int32)
    assert read(Image.fromarray(wide), "TIFF", 1, size=2).tolist() == [[[0, 1], [100, 255]]]
    for wrong in (-1, 65536):
        wide[0, 0] = wrong
        with pytest.raises(Unreadable, match=r"here/0\.png: 32-bit pixels"):
            read(Image.fromarray(wide), "TIFF", 1, size=2)


def test_floating_point_is_refused_by_name():
    with pytest.raises(Unreadable, match=r"here/0\.png: floating point"):
        read(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF")


def test_cmyk_and_jpeg():
    ink = RNG.integers(0, 256, (5, 7, 4), dtype=np.uint8)
    out = read(Image.fromarray(ink, "CMYK"), "TIFF").astype(int)
    colour, key = ink[..., :3].astype(float), ink[..., 3:].astype(float)
    expected = (255 - colour) * (255 - key) / 255
    assert np.abs(out - expected.transpose(2, 0, 1)).max() <= 1
    flat = Image.new("RGB", (16, 16), (200, 30, 90))
    assert np.abs(read(flat, "JPEG", size=16).astype(int) - [[[200]], [[30]], [[90]]]).max() <= 2


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_undone(orientation, kind):
    upright = np.zeros((16, 32), np.uint8)
    upright[:8, :8], upright[:8, 24:], upright[8:, :8] = 250, 150, 80  # all four corners differ
    # How a camera held in each of the eight ways stores it (EXIF 2.3, tag 0x0112).
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.T,
        6: np.rot90(upright, 1),
        7: np.rot90(upright, 2).T,
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.fromarray(np.ascontiguousarray(stored)).convert("RGB"), kind, exif=exif)
    image = Pictures(source(data), (16, 32), 1).read(0)[0][0]
    assert np.abs(image.astype(int) - upright).mean() < 2


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_damaged_exif_is_passed_over():
    data = encoded(Image.fromarray(RGB), exif=b"Exif\0\0II*\0\xff\xff\xff\xff" + b"x" * 9)
    assert np.array_equal(Pictures(source(data), (5, 7)).read(0)[0], RGB.transpose(2, 0, 1))


@pytest.mark.parametrize("cell", [2, 4, 8, 16])
def test_halving_averages_cells_exactly(cell):
    small = RNG.integers(0, 256, (8, 8, 3), dtype=np.uint8)
    large = small.repeat(cell, 0).repeat(cell, 1)
    assert np.array_equal(np.asarray(fit(Image.fromarray(large), 8, 8)), small)


def test_the_centre_is_kept():
    wide = np.tile(np.arange(40, dtype=np.uint8), (10, 1))
    assert np.array_equal(np.asarray(fit(Image.fromarray(wide), 10, 10)), wide[:, 15:25])
    assert np.array_equal(np.asarray(fit(Image.fromarray(wide.T), 10, 10)), wide.T[15:25])
    assert np.array_equal(np.asarray(fit(Image.fromarray(wide), 10, 20)), wide[:, 10:30])
    assert np.array_equal(np.asarray(fit(Image.fromarray(wide), 10, 31)), wide[:, 4:35])


@pytest.mark.parametrize(("height", "width"), [(16, 16), (16, 32), (24, 8), (40, 40), (64, 16)])
def test_a_ramp_stays_the_ramp_of_the_covered_part(height, width):
    rows, columns = 48, 60  # 2 grey levels a pixel down, 3 across, from below
    ramp = 10 + 2.0 * np.arange(rows)[:, None] + 2.0 * np.arange(columns)
    out = np.asarray(fit(Image.fromarray(ramp.astype(np.uint8)), height, width)).astype(float)
    assert out.shape == (height, width)
    scale = max(height / rows, width / columns)
    down = (np.arange(height) + 0.5 - height / 2) / scale + rows / 2 - 0.5
    across = (np.arange(width) + 0.5 - width / 2) / scale + columns / 2 - 0.5
    expected = 10 + 2 * down[:, None] + 2 * across
    inner = (slice(2, -2), slice(2, -2))
    assert np.abs(out - expected)[inner].max() <= 2.0  # a crop by whole pixels, two roundings
    assert np.abs((out - expected)[inner].mean()) <= 1.1 / scale + 0.5


def test_adm_by_hand():
    """Against the recipe written out for one case: 100 x 70, 50 x 35, 25 x 17, 24 x 16, 16 x 16."""
    image = Image.fromarray(RNG.integers(0, 256, (70, 100, 3), dtype=np.uint8))
    by_hand = image.resize((50, 35), Image.Resampling.BOX)
    by_hand = by_hand.resize((25, 17), Image.Resampling.BOX)
    by_hand = by_hand.resize((24, 16), Image.Resampling.BICUBIC).crop((4, 0, 20, 16))
    assert np.array_equal(np.asarray(fit(image, 16, 16)), np.asarray(by_hand))


def test_flips_are_drawn_by_rng_only_if_wanted():
    plain = RGB.transpose(2, 0, 1)
    data = source(encoded(Image.fromarray(RGB)))
    flipping, steady = Pictures(data, (5, 7), flip=True), Pictures(data, (5, 7))
    mirrored = 0
    for seed in range(200):
        image = flipping.read(0, np.random.default_rng(seed))[0]
        assert np.array_equal(image, flipping.read(0, np.random.default_rng(seed))[0])
        assert np.array_equal(steady.read(0, np.random.default_rng(seed))[0], plain)
        assert np.array_equal(image, plain) or np.array_equal(image, plain[..., ::-1])
        mirrored += np.array_equal(image, plain[..., ::-1])
    assert 70 < mirrored < 130
    assert np.array_equal(flipping.read(0)[0], plain)


@pytest.mark.parametrize("channels", [1, 3])
def test_arrays_can_become_tensors(channels):
    image, label = Pictures(source(encoded(Image.fromarray(RGB))), (5, 7), channels, True).read(0)
    assert image.dtype == np.uint8
    assert image.flags.writeable
    assert image.flags.c_contiguous
    assert type(label) is int


def test_channels_are_what_the_images_are():
    grey, colour = encoded(Image.fromarray(GREY)), encoded(Image.fromarray(RGB))
    wide = encoded(Image.fromarray(GREY.astype(np.uint16)))
    with_palette = Image.fromarray(GREY)
    with_palette.putpalette([v for v in range(256) for _ in range(3)])
    assert infer_channels(source(grey, wide, encoded(with_palette))) == 1
    assert infer_channels(source(*[grey] * 9, colour)) == 3
    assert infer_channels(source(b"broken", grey)) == 1
    with pytest.raises(ValueError, match=r"^here: none of its images can be read; the first: here"):
        infer_channels(source(b"broken", b""))
    assert Pictures(source(colour), 4).channels == 3


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "WEBP", "GIF", "BMP"])
def test_truncated_files_are_named(kind):
    big = RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)
    whole = encoded(Image.fromarray(big), kind)
    data = Pictures(source(whole, whole[: len(whole) // 2]), 8, 3)
    data.read(0)
    with pytest.raises(Unreadable) as caught:
        data.read(1)
    assert caught.value.name == "here/1.png"
    assert caught.value.reason
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "junk", [b"", b"no image", b"\x89PNG\r\n\x1a\n" + b"\0" * 50, b"%!PS-Adobe-3.0 EPSF-3.0\n"]
)
def test_what_is_no_image_is_named(junk):
    with pytest.raises(Unreadable, match=r"^here/0\.png: "):
        open_image(source(junk), 0)


@pytest.mark.parametrize("kind", ["PCX", "SGI", "EPS", "ICNS"])
def test_formats_beyond_the_usual_are_not_tried(kind):
    data = encoded(Image.new("RGB", (16, 16)), kind)
    with pytest.raises(Unreadable, match="not an image in a format that is read"):
        open_image(source(data), 0)


def test_decompression_bombs_are_unreadable(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(Unreadable, match="decompression bomb"):
        read(Image.fromarray(RGB))


def test_unreadable_survives_a_process_boundary():
    import pickle

    error = pickle.loads(pickle.dumps(Unreadable("a.png", "broken")))
    assert (error.name, error.reason, str(error)) == ("a.png", "broken", "a.png: broken")


@pytest.mark.parametrize(
    "wrong", [{"channels": 2}, {"alpha": "see-through"}, {"size": 0}, {"size": (8, -1)}]
)
def test_wrong_settings_are_one_line(wrong):
    with pytest.raises(ValueError, match=r"^(channels|alpha|size) is [^\n]+; [^\n]+$"):
        Pictures(source(encoded(Image.fromarray(RGB))), **{"size": 8, **wrong})
