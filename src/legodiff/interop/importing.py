"""Opens a model of others as a pipeline of ours, whatever it is."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from legodiff.interop.diffusers_models import diffusers_pipeline, is_diffusers_folder
from legodiff.interop.dit import dit_pipeline
from legodiff.interop.files import read_weights
from legodiff.interop.lego import LATENTS, lego_pipeline, official_spec
from legodiff.pickles import BROKEN
from legodiff.pipeline import LegoPipeline
from legodiff.vae import VaeSpec


class Imported(NamedTuple):
    """A model, and in words what it was."""

    pipe: LegoPipeline
    what: str


def import_model(
    path: Path,
    model: str | None = None,
    heads: int | None = None,
    vae: VaeSpec | None = None,
    condition: Path | None = None,
) -> Imported:
    """A model of others as a pipeline. Nothing in a file is run.

    Args:
        path: a checkpoint of LEGO's or DiT's authors: a pickle in EDM's format, a file of
            ``torch.save``, safetensors or NPZ; or the folder of a model or pipeline of diffusers.
        model: the authors' name of a LEGO stack, such as "lego_L_PG_64"; checked.
        heads: of the attention, for widths other than those of the published models.
        vae: what made the latents of a model of latents; by default Stable Diffusion's.
        condition: a file of tensors that a network of diffusers is given with every image.

    Raises ValueError, in one line that names the file, for anything else.
    """
    if path.is_dir():
        if not is_diffusers_folder(path):
            raise ValueError(f"{path} is no folder of diffusers; name a file, or such a folder")
        fixed = {} if condition is None else read_weights(condition).tensors
        with _in_one_line(path):
            pipe = diffusers_pipeline(path, fixed, vae)
        return Imported(pipe, f"{pipe.stack.spec.bricks[0]} of diffusers")
    vae = vae or LATENTS
    weights = read_weights(path)
    with _in_one_line(path):
        if any(name.endswith("model.0.x_embedder.proj.weight") for name in weights.tensors):
            what = "LEGO stack"
            known = {name: value for name, value in weights.about.items() if value is not None}
            pipe = lego_pipeline(
                weights.tensors,
                heads or known.get("num_heads"),
                known.get("sigma_data", 0.5),
                known.get("dropout_prob", 0.1),
                vae,
            )
        elif "x_embedder.proj.weight" in weights.tensors:
            what, pipe = "DiT", dit_pipeline(weights.tensors, heads, vae)
        else:
            first = min(weights.tensors)
            raise ValueError(f"these are no weights of LEGO or DiT (the first tensor is {first})")
        if model is not None:
            _check(model, pipe)
    return Imported(pipe, f"{what} from a {weights.kind}")


@contextmanager
def _in_one_line(path: Path) -> Iterator[None]:
    """What a file says may fit nothing: whatever comes of that is told in one line."""
    try:
        yield
    except BROKEN as error:
        reason = " ".join(str(error).split())[:300]
        if not isinstance(error, ValueError):
            reason = f"it is not what it says it is ({type(error).__name__}: {reason})"
        named = reason if reason.startswith(str(path)) else f"{path}: {reason}"
        raise ValueError(named) from error


def _check(model: str, pipe: LegoPipeline) -> None:
    """Raises ValueError if a pipeline is another model than its name says."""
    spec = pipe.stack.spec
    named = official_spec(model, spec.channels, spec.classes)
    for what in ("image_size", "width", "heads", "bricks"):
        if (own := getattr(spec, what)) != (theirs := getattr(named, what)):
            raise ValueError(f"this is not {model}: its {what} is {own}, not {theirs}")
