"""The page: tabs over one model. Words and events only; ``drawing`` does the work."""

import gradio as gr

from legodiff.model.cost import brick_parameters
from legodiff.studio import gallery, generate, inside, parts, training, wide
from legodiff.studio.drawing import Studio

HOUR = 3600  # seconds after which files of what was painted are deleted


def build(studio: Studio) -> gr.Blocks:
    """The page of a studio."""
    with gr.Blocks(
        title=f"legodiff studio: {studio.name}", analytics_enabled=False, delete_cache=(60, HOUR)
    ) as blocks:
        gr.Markdown(_heading(studio))
        kept = gr.State([])  # for each visitor; an hour after the page is closed Gradio frees it
        with gr.Tab("Generate"):
            generate.tab(studio, kept)
        with gr.Tab("Canvas"):
            wide.tab(studio, kept)
        with gr.Tab("Inside"):
            inside.tab(studio)
        if studio.run is not None:
            with gr.Tab("Training"):
                training.tab(studio, studio.run, blocks)
        with gr.Tab("Gallery"):
            shown = parts.raw(gallery.shown(studio, []))
            kept.change(
                lambda entries: gallery.shown(studio, entries),
                kept,
                shown,
                **parts.QUIET,
                queue=False,
            )
    page: gr.Blocks = blocks
    return page


def _heading(studio: Studio) -> str:
    spec = studio.pipe.stack.spec
    height, width = (side * studio.pipe.codec.factor for side in spec.image_size)
    classes = f"{spec.classes} classes" if spec.classes else "no classes"
    return (
        f"# {studio.name}\n{height}x{width} pixels, {classes}, {len(spec.bricks)} bricks, "
        f"{sum(brick_parameters(spec)) / 1e6:.3g} M parameters, on {studio.pipe.device}"
    )
