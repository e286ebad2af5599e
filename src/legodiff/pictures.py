"""Pictures people look at: grids of images, curves, and PNG files that say how they were made."""

import io
import json
from collections.abc import Mapping, Sequence
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from legodiff.store import write_atomically

SMALLEST = 48  # pixels: smaller images are enlarged in grids, so that one can see them
PAPER, INK = (255, 255, 255), (40, 40, 40)


def png_bytes(image: Image.Image, metadata: Mapping[str, Any] | None = None) -> bytes:
    """A PNG file; ``metadata`` goes into its text chunks.

    Texts stand there as they are, other values as JSON.
    """
    info = PngInfo()
    for key, value in (metadata or {}).items():
        info.add_text(key, value if isinstance(value, str) else json.dumps(value))
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", pnginfo=info)
    return buffer.getvalue()


def save_png(path: Path, image: Image.Image, metadata: Mapping[str, Any] | None = None) -> None:
    """Writes a PNG whole or not at all; see ``png_bytes``."""
    write_atomically(path, png_bytes(image, metadata))


def grid(images: Sequence[Image.Image], columns: int, gap: int = 2) -> Image.Image:
    """Images of one size side by side, row by row, on white. Small ones are enlarged unsmoothed."""
    width, height = images[0].size
    zoom = max(1, SMALLEST // min(width, height))
    width, height = width * zoom, height * zoom
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * (width + gap) - gap, rows * (height + gap) - gap), PAPER)
    for number, image in enumerate(images):
        row, column = divmod(number, columns)
        tile = image.convert("RGB").resize((width, height), Image.Resampling.NEAREST)
        sheet.paste(tile, (column * (width + gap), row * (height + gap)))
    return sheet


def captioned(panels: Sequence[tuple[str, Image.Image]], margin: int = 16) -> Image.Image:
    """Pictures side by side on white, each under its caption (which may have several lines)."""
    font = ImageFont.load_default(size=15)
    pen = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    boxes = [pen.multiline_textbbox((0, 0), caption, font=font) for caption, _ in panels]
    head = int(max(box[3] for box in boxes)) + margin // 2
    widths = [max(image.width, int(box[2])) for box, (_, image) in zip(boxes, panels, strict=True)]
    height = margin * 2 + head + max(image.height for _, image in panels)
    sheet = Image.new("RGB", (sum(widths) + margin * (len(panels) + 1), height), PAPER)
    pen, x = ImageDraw.Draw(sheet), margin
    for width, (caption, image) in zip(widths, panels, strict=True):
        pen.multiline_text((x, margin), caption, font=font, fill=INK)
        sheet.paste(image, (x, margin + head))
        x += width + margin
    return sheet


def animation(path: Path, frames: Sequence[Image.Image], milliseconds: int = 120) -> None:
    """Writes frames as an endless GIF or WebP, by the suffix; the last one stays for a second."""
    times = [milliseconds] * (len(frames) - 1) + [1000]
    buffer = io.BytesIO()
    kind = path.suffix[1:].upper()
    more = {"lossless": True} if kind == "WEBP" else {}
    frames[0].save(
        buffer,
        format=kind,
        save_all=True,
        append_images=frames[1:],
        duration=times,
        loop=0,
        **more,
    )
    write_atomically(path, buffer.getvalue())


def table_of_images(
    rows: Sequence[tuple[str, Sequence[Image.Image | None]]], columns: Sequence[str], title: str
) -> Image.Image:
    """Images in a table with a caption for each row and each column; None leaves a place empty."""
    first = next(image for _, images in rows for image in images if image is not None)
    zoom = max(1, 64 // min(first.size))
    width, height = (side * zoom for side in first.size)
    font, gap, margin, head = ImageFont.load_default(size=14), 4, 16, 76
    pen = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    left = margin + int(max(pen.textlength(caption, font=font) for caption, _ in rows)) + 12
    size = (
        max(left + len(columns) * (width + gap), int(pen.textlength(title, font=font)) + margin)
        + margin,
        head + len(rows) * (height + gap) + margin,
    )
    sheet = Image.new("RGB", size, PAPER)
    pen = ImageDraw.Draw(sheet)
    pen.text((margin, margin), title, font=font, fill=INK)
    for number, caption in enumerate(columns):
        x = left + number * (width + gap) + width / 2
        pen.text((x, head - 12), caption, font=font, fill=INK, anchor="ms")
    for row, (caption, images) in enumerate(rows):
        y = head + row * (height + gap)
        pen.text((margin, y + height / 2), caption, font=font, fill=INK, anchor="lm")
        for number, image in enumerate(images):
            if image is None:
                continue
            tile = image.convert("RGB").resize((width, height), Image.Resampling.NEAREST)
            sheet.paste(tile, (left + number * (width + gap), y))
    return sheet


def new_figure(width: float, height: float) -> Any:
    """A matplotlib figure. Raises ValueError if that is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ValueError(
            "curves need matplotlib, which is not installed; run: pip install 'legodiff[demo]'"
        ) from error
    return Figure(figsize=(width, height), layout="constrained")


def figure_bytes(figure: Any) -> bytes:
    """A figure as a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()


def save_figure(path: Path, figure: Any) -> None:
    """Writes a figure as PNG, whole or not at all."""
    write_atomically(path, figure_bytes(figure))


def trade_off_figure(
    curves: Mapping[str, Sequence[tuple[float, float]]],
    title: str,
    chosen: float | None = None,
) -> Any:
    """Error over cost, a line for each name: (share of the full FLOPs, error) points.

    ``chosen``: a share to be marked.
    """
    figure = new_figure(7, 4.5)
    axes = figure.subplots()
    for (name, points), mark in zip(curves.items(), "os^v", strict=False):
        shown = [(share, error) for share, error in points if error > 0]
        axes.plot(*zip(*shown, strict=True), f"{mark}-", label=name, markersize=4)
    if chosen is not None:
        axes.axvline(chosen, color="0.3", linestyle="--", label="chosen")
    axes.set(
        title=title,
        xlabel="share of the full FLOPs",
        ylabel="difference from the full model's images\n(RMS, in deviations of the data)",
        yscale="log",
        xlim=(0, 1),
    )
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize="small")
    return figure


def cost_picture(
    path: Path,
    rows: Sequence[tuple[str, float, tuple[float, float, float]]],
    title: str,
) -> None:
    """Draws bars of what is counted and what is measured, side by side.

    A row is a name, GFLOPs, and milliseconds as (median, low, high).
    """
    figure = new_figure(10, 1.2 + 0.32 * len(rows))
    left, right = figure.subplots(1, 2, sharey=True)
    names, flops, times = zip(*rows, strict=True)
    places = range(len(rows))
    left.barh(places, flops, color="0.6")
    medians = [median for median, _, _ in times]
    around = [[median - low for median, low, _ in times], [high - m for m, _, high in times]]
    right.barh(places, medians, xerr=around, color="tab:blue", error_kw={"capsize": 3})
    left.set(yticks=places, yticklabels=names, xlabel="GFLOPs an image, counted")
    right.set(xlabel="milliseconds an image: median, 10th and 90th percentile")
    left.invert_yaxis()
    figure.suptitle(title)
    for axes in (left, right):
        axes.grid(alpha=0.3, axis="x")
    save_figure(path, figure)


def loss_figure(
    log: Sequence[Mapping[str, Any]], names: Sequence[str], edges: Sequence[float]
) -> Any:
    """The losses of a ``log.jsonl`` over images seen.

    On the left a line for each brick, and dots for the average of the weights where it was judged;
    on the right the top brick in each band of noise levels, parted by ``edges``.
    """
    figure = new_figure(12, 4)
    left, right = figure.subplots(1, 2)
    judged = [line for line in log if "ema_losses" in line]
    for number, name in enumerate(names):
        (drawn,) = left.plot(*_points(log, "losses", number), label=name)
        left.plot(*_points(judged, "ema_losses", number), "o", color=drawn.get_color())
    ranges = [f"sigma < {edge:g}" for edge in edges] + [f"sigma > {edges[-1]:g}"]
    for band, name in enumerate(ranges):
        right.plot(*_points(log, "bands", -1, band), label=name)
    left.set(title="each brick; dots: the average, on fixed images")
    right.set(title=f"the top brick ({names[-1]}) by noise level")
    for axes in (left, right):
        axes.set(xlabel="images seen", ylabel="training loss (raw units)", yscale="log")
        axes.grid(alpha=0.3, which="both")
        axes.legend(fontsize="small")
    return figure


def _points(
    log: Sequence[Mapping[str, Any]], name: str, *place: int
) -> tuple[list[int], list[float]]:
    """Images seen and a value of each line that has one, such as "losses", 2."""
    found = [(line["images"], reduce(getitem, place, line[name])) for line in log]
    return [x for x, y in found if y is not None], [y for _, y in found if y is not None]
