"""Image files of any mode and size -> uint8 arrays of one mode and one size."""

import io
from functools import lru_cache

import numpy as np
from PIL import ExifTags, Image, ImageColor, UnidentifiedImageError

from legodiff.data import Unreadable
from legodiff.data.sources import Source

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "PPM", "AVIF", "JPEG2000")
"""Only these are tried, whatever a file is called: some others start programs (EPS)."""
GREY_MODES = ("1", "L", "LA", "La", "I", "I;16", "I;16L", "I;16B", "I;16N")
SAMPLE = 64  # images that tell the number of channels
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation -> what undoes it."""


class Pictures:
    """A source as images of one size and number of channels; is an ``ImageData``.

    ``channels``: 1, 3, or None for what up to 64 evenly spaced images are (1 if all are grey).
    ``flip``: mirror half of the images left to right, as ``rng`` draws it.
    ``alpha``: the colour behind transparent pixels. Raises ValueError for what is not allowed.
    """

    transform = "halved by a box filter while twice too large, bicubic, centre crop"

    def __init__(
        self,
        source: Source,
        size: int | tuple[int, int],
        channels: int | None = None,
        flip: bool = False,
        alpha: str = "white",
    ) -> None:
        if channels not in (None, 1, 3):
            raise ValueError(f"channels is {channels}; choose 1 (grey), 3 (colour) or leave it out")
        try:
            ImageColor.getrgb(alpha)
        except ValueError as error:
            raise ValueError(f"alpha is {alpha!r}; name a colour: white, grey, #204080") from error
        self.source, self.flip, self.alpha = source, flip, alpha
        self.size = height_and_width(size)
        self.class_names = source.class_names
        self.channels = channels or infer_channels(source)

    def __len__(self) -> int:
        return len(self.source)

    def read(self, index: int, rng: np.random.Generator | None = None) -> tuple[np.ndarray, int]:
        """The image, uint8 (C, H, W), and its class index. Raises Unreadable."""
        image = open_image(self.source, index)
        try:
            plain = to_mode(image, self.channels, self.alpha)
            pixels = np.array(fit(plain, *self.size))  # (H, W) or (H, W, 3)
        except Exception as error:
            raise Unreadable(self.source.name(index), _reason(error)) from error
        pixels = pixels[None] if self.channels == 1 else np.moveaxis(pixels, -1, 0)  # (C, H, W)
        if self.flip and rng is not None and rng.random() < 0.5:
            pixels = pixels[..., ::-1]
        return np.ascontiguousarray(pixels), int(self.source.labels[index])


def height_and_width(size: int | tuple[int, int]) -> tuple[int, int]:
    """One number means a square. Raises ValueError unless both are above 0."""
    height, width = (size, size) if isinstance(size, int) else size
    if min(height, width) < 1:
        raise ValueError(f"size is {height}x{width}; height and width must be 1 or more")
    return height, width


def infer_channels(source: Source) -> int:
    """1 if all of up to 64 evenly spaced images are stored in grey, else 3.

    Unreadable ones are passed over. Raises ValueError if all of them are unreadable.
    """
    grey, trouble = [], None
    for index in evenly_spaced(len(source), SAMPLE):
        try:
            grey.append(is_grey(open_image(source, index)))
        except Unreadable as error:
            trouble = trouble or error
        if grey and not grey[-1]:
            return 3
    if not grey:
        raise ValueError(f"{source.place}: none of its images can be read; the first: {trouble}")
    return 1


def evenly_spaced(count: int, at_most: int) -> list[int]:
    """Up to ``at_most`` of ``count`` indices, from the first to the last."""
    return [int(i) for i in np.linspace(0, count - 1, min(count, at_most)).round()]


def open_image(source: Source, index: int) -> Image.Image:
    """Item i, completely decoded and upright, in the mode it is stored in. Raises Unreadable."""
    try:
        item = source.fetch(index)
        if isinstance(item, Image.Image):
            return item
        image: Image.Image = Image.open(io.BytesIO(item), formats=_formats())
        image.load()
    except Exception as error:  # PIL's readers raise almost anything for damaged files
        raise Unreadable(source.name(index), _reason(error)) from error
    turn = UPRIGHT.get(_orientation(image))
    return image if turn is None else image.transpose(turn)


@lru_cache(maxsize=1)
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # damaged EXIF data says nothing; the pixels are whole
        return 1


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "not an image in a format that is read (such as PNG, JPEG, WebP, TIFF)"
    return " ".join(str(error).split()) or type(error).__name__


def is_grey(image: Image.Image) -> bool:
    """Whether an image is stored without colour, or with a palette of greys."""
    if image.mode not in ("P", "PA"):
        return image.mode in GREY_MODES
    palette = np.asarray(image.convert("RGB"))
    return bool((palette == palette[..., :1]).all())


def to_mode(image: Image.Image, channels: int, alpha: str) -> Image.Image:
    """An image of any mode in L (1 channel) or RGB (3), on ``alpha`` where it is transparent.

    16-bit grey is scaled from its full range. Raises ValueError for modes without a known range.
    """
    mode = "L" if channels == 1 else "RGB"
    if image.mode == "F":
        raise ValueError("floating point pixels have no fixed range; save it with 8 or 16 bits")
    if image.mode.startswith("I"):
        image = _from_16_bits(image)
    if image.has_transparency_data:
        with_alpha = image.convert("LA" if image.mode in GREY_MODES else "RGBA")
        background = Image.new(mode, image.size, ImageColor.getcolor(alpha, mode))
        opaque = with_alpha.convert(mode)
        background.paste(opaque, mask=with_alpha.getchannel("A"))
        return background
    return image if image.mode == mode else image.convert(mode)


def _from_16_bits(image: Image.Image) -> Image.Image:
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 0xFFFF:
        raise ValueError("32-bit pixels beyond 0 to 65535 have no known range; save it with 16")
    return Image.fromarray(((values + 128) // 257).astype(np.uint8))  # 65535 / 257 = 255


def fit(image: Image.Image, height: int, width: int) -> Image.Image:
    """Scales an image to cover (height, width) and crops its centre, as ADM does it.

    Halved by a box filter while it is at least twice as large, then bicubic to cover exactly.
    """
    while image.width >= 2 * width and image.height >= 2 * height:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = max(width / image.width, height / image.height)
    cover = max(width, round(image.width * scale)), max(height, round(image.height * scale))
    if cover != image.size:
        image = image.resize(cover, Image.Resampling.BICUBIC)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    if cover == (width, height):
        return image
    return image.crop((left, top, left + width, top + height))
