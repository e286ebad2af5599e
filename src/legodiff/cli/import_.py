"""``legodiff import``"""

from pathlib import Path
from typing import Annotated

import typer

from legodiff.cli.common import VaeOption, check_place, say


def import_(
    file: Annotated[
        Path,
        typer.Argument(help="EDM pickle of LEGO's authors, or a state dict of theirs or of DiT."),
    ],
    out: Annotated[Path, typer.Argument(help="Model folder to make.")],
    model: Annotated[
        str | None, typer.Option(help="The authors' name of it, such as lego_L_PG_64; checked.")
    ] = None,
    heads: Annotated[
        int | None, typer.Option(help="Attention heads, of a width that was not published.", min=1)
    ] = None,
    vae: VaeOption = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a model there.")] = False,
) -> None:
    """Turn a checkpoint of LEGO's authors, or of DiT, into a model folder.

    Nothing in the file is run: pickles pass through a reader that only knows tensors and names.
    The model folder holds safetensors and JSON.
    """
    from legodiff import store
    from legodiff.interop.importing import import_model
    from legodiff.interop.lego import LATENTS
    from legodiff.vae import open_vae

    if (out / store.CONFIG).exists() and not overwrite:
        raise ValueError(f"{out} holds a model already; choose another folder, or --overwrite")
    check_place(out, file.stat().st_size if file.is_file() else 0)
    spec = LATENTS if vae is None else open_vae(vae).spec
    pipe, what = import_model(file, model, heads, spec)
    pipe.save_pretrained(out)
    stack = pipe.stack.spec
    side, classes = "x".join(map(str, stack.image_size)), stack.classes or "no"
    say(f"{what}: {len(stack.bricks)} bricks, {side}x{stack.channels}, {classes} classes, in {out}")
    label = " --labels 0-7" if stack.classes else " --seeds 0-7"
    more = " --vae DIR_OR_ID" if pipe.codec.factor > 1 and vae is None else ""
    say(f"Draw with it:  legodiff sample {out}{label}{more} --out samples")
