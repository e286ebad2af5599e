"""``legodiff data check`` and ``legodiff data encode``"""

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from legodiff.cli.common import (
    choose_device,
    console,
    nothing,
    parse_precision,
    parse_size,
    progress,
    say,
)
from legodiff.cli.options import DeviceOption

if TYPE_CHECKING:
    from legodiff.data.check import Report

SHOWN = 10  # unreadable files, sizes and classes named, at most

app = typer.Typer(
    help="Look at images before training on them; encode them to latents.", no_args_is_help=True
)

CROPPED = "Images are cropped and scaled to HEIGHTxWIDTH or SIDE."
ChannelsOption = Annotated[
    int | None,
    typer.Option("--channels", help="1 for grey, 3 for colour; by default as the images are."),
]


@app.command(epilog="Example:  legodiff data check photos/ --size 64")
def check(
    path: Annotated[
        str, typer.Argument(help='A folder, zip, tar shards, parquet, hf:NAME, "digits" ...')
    ],
    size: Annotated[str | None, typer.Option(help=CROPPED)] = None,
    channels: ChannelsOption = None,
) -> None:
    """Decode every image; print what is there, what is broken, and how to train on it.

    Exit code 1 if an image cannot be read.
    """
    from legodiff.data.check import check as run_check

    with progress() as show:
        report = run_check(
            path,
            parse_size(size),
            channels,
            on_progress=lambda done, total: show("reading", done, total),
        )
    _print_report(report)
    if report.unreadable:
        raise typer.Exit(1)


@app.command(
    epilog="Examples:  legodiff data encode imagenet/train --vae stabilityai/sd-vae-ft-ema "
    "--size 256 --out latents\n\n"
    "torchrun --nproc-per-node 8 -m -- legodiff data encode ..."
)
def encode(
    path: Annotated[str, typer.Argument(help="Images, as for training.")],
    vae: Annotated[str, typer.Option(help="AutoencoderKL of diffusers: a folder or Hub id.")],
    out: Annotated[Path, typer.Option(help="Folder for the latents.")],
    size: Annotated[str, typer.Option(help=CROPPED)] = "256",
    batch: Annotated[int, typer.Option(help="Images encoded at a time.", min=1)] = 16,
    workers: Annotated[int, typer.Option(help="Processes that read images.", min=0)] = 0,
    precision: Annotated[str, typer.Option(help="fp32 or bf16, of the VAE.")] = "fp32",
    strict_data: Annotated[
        bool, typer.Option("--strict-data", help="Stop at an image that cannot be read.")
    ] = False,
    device: DeviceOption = "auto",
) -> None:
    """Encode images to sharded latents; the same command goes on where it stopped.

    Kept are mean and deviation, so that each epoch draws afresh.
    """
    from legodiff.data import open_data
    from legodiff.data.encode import encode as run_encoding
    from legodiff.train.distributed import joined
    from legodiff.vae import open_vae

    parse_precision(precision)  # which says what there is
    with joined(choose_device(device)) as world:
        images = open_data(path, parse_size(size), channels=3)
        opened = open_vae(vae)
        with progress() if world.leads else nullcontext(nothing) as show:
            found = run_encoding(
                images,
                opened,
                out,
                batch=batch,
                rank=world.rank,
                world=world.size,
                device=world.device,
                precision=precision,
                source=path,
                workers=workers,
                strict=strict_data,
                on_progress=lambda done, total: show("encoding", done, total),
                on_unreadable=lambda name, reason: say(
                    f"unreadable, the next image stands in for it: {name}: {reason}"
                ),
            )
    if world.leads:
        who = "" if world.size == 1 else f" by the first of {world.size} processes"
        say(f"{found.images:,} images encoded{who}, {len(found.unreadable)} unreadable")
    if found.deviation is not None and (world.leads or found.images):
        # The process that is done last knows: nobody waits for it, as that can take hours.
        numbers = ", ".join(f"{deviation:.3f}" for deviation in found.deviation)
        height, width = (side // opened.spec.downsampling for side in images.size)
        say(f"All of {out} is there. Deviation of each channel after the VAE's scaling: {numbers}")
        say(
            f"Train on it:  legodiff train imagenet-256-xl-pr --data {out} --size {height}x{width} "
            "--run runs/latents"
        )
        if found.warning is not None:
            say(f"warning: {found.warning}")


def _print_report(report: "Report") -> None:
    rows: list[tuple[str, str]] = [("kind", report.kind), ("images", f"{report.count:,}")]
    named = [f"{w}x{h}: {count:,}" for (w, h), count in report.sizes.items()]
    rows.append(("sizes (width x height)", _listed(named)))
    if report.smallest and report.largest:
        ends = ("x".join(map(str, end)) for end in (report.smallest, report.largest))
        rows.append(("smallest, largest", ", ".join(ends)))
    rows.append(("modes", _listed([f"{mode}: {n:,}" for mode, n in report.modes.items()])))
    counted = [f"{name}: {count:,}" for name, count in report.classes.items()]
    classes = f"{len(counted)} ({_listed(counted)})" if counted else "none"
    rows.append(("classes", classes))
    if report.statistics is not None:
        found = report.statistics
        height, width = found.size
        which = f"{found.images:,} evenly spaced images" if found.sampled else "all images"
        rows.append((f"pixels in [-1, 1] at {height}x{width}", f"of {which}"))
        rows.append(("  mean", ", ".join(f"{mean:.3f}" for mean in found.mean)))
        rows.append(("  standard deviation", ", ".join(f"{std:.3f}" for std in found.std)))
    _table(rows)
    for warning in report.warnings:
        say(f"warning: {warning}")
    for name, reason in list(report.unreadable.items())[:SHOWN]:
        say(f"unreadable: {name}: {reason}")
    if len(report.unreadable) > SHOWN:
        say(f"unreadable: {len(report.unreadable) - SHOWN} more")
    if report.suggestion is not None:
        say("\nTo begin with:")
        advice, why = report.suggestion, report.suggestion.reasons
        height, width = advice.size
        values = {
            **{"size": f"{height}x{width}", "channels": advice.channels},
            **{"sigma_data": advice.sigma_data, "sigma_mean": advice.sigma_mean},
            **{"sigma_std": advice.sigma_std, "preset": advice.preset, "bricks": advice.bricks},
        }
        _table([(name, f"{value}  ({why[name]})") for name, value in values.items()])
        say(f"\n{advice.command}")


def _table(rows: list[tuple[str, str]]) -> None:
    table = Table(show_header=False, box=None, pad_edge=False)
    for row in rows:
        table.add_row(*row)
    console.print(table, markup=False, highlight=False)


def _listed(names: list[str]) -> str:
    more = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {more} more" if more > 0 else "")
