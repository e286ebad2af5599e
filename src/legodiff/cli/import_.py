"""``legodiff import``"""

from pathlib import Path
from typing import Annotated

import typer

from legodiff.cli.common import check_place, say, tell_commit
from legodiff.cli.options import VaeOption

WEIGHTS = "diffusion_pytorch_model"
FETCHED = tuple(
    place + file
    for place in ("", "unet/", "transformer/", "vae/", "scheduler/")
    for file in (
        *("model_index.json", "config.json", "scheduler_config.json"),
        *(
            f"{WEIGHTS}.safetensors",
            f"{WEIGHTS}-*.safetensors",
            f"{WEIGHTS}.safetensors.index.json",
        ),
    )
)
"""Of a repository of diffusers: no encoders of text, no copies in half precision."""
FILES = (".pkl", ".pickle", ".pt", ".pth", ".ckpt", ".bin", ".npz", ".safetensors", ".zip")
"""Endings that no name on the Hub has."""


def import_(
    file: Annotated[
        str,
        typer.Argument(
            help="EDM pickle of LEGO's authors, a state dict of theirs or of DiT, or a folder or "
            "Hub id of diffusers."
        ),
    ],
    out: Annotated[Path, typer.Argument(help="Model folder to make.")],
    model: Annotated[
        str | None, typer.Option(help="The authors' name of it, such as lego_L_PG_64; checked.")
    ] = None,
    heads: Annotated[
        int | None, typer.Option(help="Attention heads, of a width that was not published.", min=1)
    ] = None,
    vae: VaeOption = None,
    condition: Annotated[
        Path | None,
        typer.Option(help="Tensors a network of diffusers is given with every image: a file."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a model there.")] = False,
) -> None:
    """Turn a model of others into a model folder.

    Checkpoints of LEGO's authors and of DiT become stacks of ours. A network of diffusers becomes
    the first brick of one, on which others can be trained. Nothing in a file is run: pickles pass
    through a reader that only knows tensors and names. The folder holds safetensors and JSON.
    """
    from legodiff import store
    from legodiff.interop.importing import import_model
    from legodiff.vae import open_vae

    if (out / store.CONFIG).exists() and not overwrite:
        raise ValueError(f"{out} holds a model already; choose another folder, or --overwrite")
    path = Path(file)
    if not path.exists() and path.suffix not in FILES and file.count("/") == 1:
        path, snapshot = store.find(file, needed=(), wanted=FETCHED)
        if snapshot is not None:
            tell_commit(file, snapshot.repo, snapshot.commit)
    check_place(out, path.stat().st_size if path.is_file() else 0)
    spec = None if vae is None else open_vae(vae).spec
    pipe, what = import_model(path, model, heads, spec, condition)
    pipe.save_pretrained(out)
    stack = pipe.stack.spec
    side, classes = "x".join(map(str, stack.image_size)), stack.classes or "no"
    say(f"{what}: {len(stack.bricks)} bricks, {side}x{stack.channels}, {classes} classes, in {out}")
    label = " --labels 0-7" if stack.classes else " --seeds 0-7"
    more = " --vae DIR_OR_ID" if pipe.codec.factor > 1 and vae is None else ""
    say(f"Draw with it:  legodiff sample {out}{label}{more} --out samples")
