"""Two data sets that need no download: letters with textured strokes, and emoji in colour.

Rendered once, at 64x64 or another size, 20,000 images each and 512 held out, and kept as .npy
beside each other. Glyphs are drawn with the fonts that matplotlib brings, emoji with Noto Color
Emoji (on Debian and Ubuntu: apt install fonts-noto-color-emoji). No emoji that is held out is among
those to learn from.
"""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

LEARNT, HELD_OUT = 20_000, 512
EMOJI_FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
STRIKE = 109
"""The only size that this font has."""


class Pictures:
    """Images of a data set, as training reads them."""

    channels, transform = 3, "rendered"
    class_names: tuple[str, ...] = ()

    def __init__(self, images: np.ndarray, labels: np.ndarray, names: tuple[str, ...]) -> None:
        self.images, self.labels, self.class_names = images, labels, names
        self.channels, self.size = images.shape[1], images.shape[2:]

    def __len__(self) -> int:
        return len(self.images)

    def read(self, index: int, rng: np.random.Generator | None = None) -> tuple[np.ndarray, int]:
        """The same for every ``rng``."""
        return np.array(self.images[index]), int(self.labels[index])


def load(name: str, folder: Path, side: int = 64) -> tuple[Pictures, Pictures]:
    """The images to learn from and those held out, of "glyphs" or "emoji"."""
    names = tuple(map(chr, range(65, 91))) if name == "glyphs" else ()
    files = [folder / f"{name}-{side}-{part}.npy" for part in ("images", "labels")]
    if not all(file.exists() for file in files):
        draw = {"glyphs": _glyphs, "emoji": _emoji}[name]
        images, labels = draw(LEARNT + HELD_OUT, side)
        folder.mkdir(parents=True, exist_ok=True)
        for file, values in zip(files, (images, labels), strict=True):
            np.save(file, values)
    images, labels = (np.load(file, mmap_mode="r") for file in files)
    parts = slice(LEARNT), slice(LEARNT, None)
    learnt, held = (Pictures(images[part], labels[part], names) for part in parts)
    return learnt, held


def _placed(
    drawn: Image.Image, chance: np.random.Generator, fill: int | tuple[int, ...], side: int
) -> Image.Image:
    """Turned, sheared, scaled and moved a little, ``side`` pixels wide."""
    angle, shear = chance.uniform(-0.2, 0.2), chance.uniform(-0.15, 0.15)
    scale = drawn.width / (2 * side) / chance.uniform(0.75, 1.0)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = scale * turn @ np.array([[1, shear], [0, 1]])
    offset = drawn.width / 2 - matrix @ (side + chance.uniform(-side / 8, side / 8, 2))
    entries = (*matrix[0], offset[0], *matrix[1], offset[1])
    moved = drawn.transform(
        (2 * side, 2 * side),
        Image.Transform.AFFINE,
        entries,
        Image.Resampling.BICUBIC,
        fillcolor=fill,
    )
    return moved.reduce(2)  # no jagged edges


def _glyphs(count: int, side: int) -> tuple[np.ndarray, np.ndarray]:
    """A capital letter whose strokes have a texture that belongs to the font."""
    import matplotlib

    fonts = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    names = sorted(p for p in fonts.glob("*.ttf") if p.stem.startswith(("DejaVuS", "STIXGen")))
    loaded = [ImageFont.truetype(str(path), 3 * side // 2) for path in names]
    loaded = [font for font in loaded if font.getmask("A").getbbox()]  # some have no letters
    rows, columns = np.mgrid[:side, :side]
    images = np.empty((count, 1, side, side), np.uint8)
    labels = np.empty(count, np.int64)
    for number in range(count):
        chance = np.random.default_rng([11, number])
        font, letter = int(chance.integers(len(loaded))), int(chance.integers(26))
        drawn = Image.new("L", (2 * side, 2 * side))
        ImageDraw.Draw(drawn).text((side, side), chr(65 + letter), 255, loaded[font], anchor="mm")
        shape = np.asarray(_placed(drawn, chance, 0, side)) / 255
        period, phase = 3.5 + font % 4, chance.uniform(0, 2 * np.pi)
        waves = [
            np.sin(2 * np.pi * rows / period + phase),
            np.sin(2 * np.pi * columns / period + phase),
            np.sin(2 * np.pi * (rows + columns) / period + phase),
            np.sin(2 * np.pi * np.hypot(rows - side / 2, columns - side / 2) / period + phase),
        ]
        texture = 0.65 + 0.35 * waves[font // 4 % 4]
        images[number, 0] = np.clip(255 * shape * texture, 0, 255).astype(np.uint8)
        labels[number] = letter
    return images, labels


def _emoji(count: int, side: int) -> tuple[np.ndarray, np.ndarray]:
    """An emoji on a pale ground."""
    from fontTools.ttLib import TTFont  # type: ignore[import-untyped]

    known = sorted(code for code in TTFont(EMOJI_FONT).getBestCmap() if code >= 0x2600)
    known = [code for code in known if not 0xFE00 <= code <= 0xFE0F and code < 0xE0000]
    order = np.random.default_rng(12).permutation(known)
    font = ImageFont.truetype(str(EMOJI_FONT), STRIKE)
    learnt, held = order[: -len(order) // 10], order[-len(order) // 10 :]
    drawings = {int(code): _drawing(int(code), font) for code in order}
    images = np.empty((count, 3, side, side), np.uint8)
    for number in range(count):
        chance = np.random.default_rng([13, number])
        codes = learnt if number < LEARNT else held
        ground = tuple(int(value) for value in chance.integers(190, 256, 3))
        placed = _placed(drawings[int(chance.choice(codes))], chance, (0, 0, 0, 0), side)
        picture = Image.new("RGBA", (side, side), (*ground, 255))
        picture.alpha_composite(placed)
        images[number] = np.moveaxis(np.asarray(picture.convert("RGB")), -1, 0)
    return images, np.zeros(count, np.int64)


def _drawing(code: int, font: ImageFont.FreeTypeFont) -> Image.Image:
    drawn = Image.new("RGBA", (144, 144), (0, 0, 0, 0))
    place = ImageDraw.Draw(drawn)
    place.text((72, 72), chr(code), font=font, anchor="mm", embedded_color=True)
    return drawn
