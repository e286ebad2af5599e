"""Sizes of the stacks, counted: the paper's tables 5 and 6."""

from legodiff.model.cost import brick_flops, brick_parameters
from legodiff.model.presets import preset
from legodiff.model.spec import BrickSpec
from legodiff.pipeline import LegoPipeline
from legodiff.reproduce.experiment import Drawing, Experiment, Scale
from legodiff.reproduce.pages import table, write_page, write_rows
from legodiff.reproduce.runs import Setting

HEAD = ("preset", "brick", "l", "width", "heads", "blocks", "parameters", "GFLOPs", "the paper")


def run(experiment: Experiment, setting: Setting) -> str:
    """A line for each brick of each preset, and for the whole; returns the page."""
    lines, rows = [], []
    channels, classes = setting.scale.image
    for name in setting.scale.more["presets"]:
        spec = preset(name, channels, classes)
        *own, shared = brick_parameters(spec)
        flops = brick_flops(spec)
        for brick, parameters, cost in zip(spec.bricks, own, flops, strict=True):
            assert isinstance(brick, BrickSpec)  # presets have no others
            about = [str(brick.size), str(brick.local), str(spec.width), str(spec.heads)]
            counted = [str(brick.depth), f"{parameters / 1e6:.2f} M", f"{cost / 1e9:.3g}", ""]
            lines.append([name, *about, *counted])
        total, whole = sum(own) + shared, sum(flops)
        printed = experiment.known(name)
        end = [f"{total / 1e6:.1f} M", f"{whole / 1e9:.3g}", printed]
        lines.append([f"**{name}**", "all", *[""] * 4, *end])
        rows.append({"preset": name, "parameters": total, "flops": whole, "the paper": printed})
    write_rows(setting.out, rows)
    return write_page(setting.out, experiment.title, [table(HEAD, lines), experiment.note])


def drawings(scale: Scale, pipe: LegoPipeline) -> list[Drawing]:
    """None: sizes are counted."""
    return []
