"""Opens a model of others as a pipeline of ours, whatever it is."""

from pathlib import Path
from typing import NamedTuple

from legodiff.interop.diffusers_models import diffusers_pipeline, is_diffusers_folder
from legodiff.interop.dit import dit_pipeline
from legodiff.interop.files import read_weights
from legodiff.interop.lego import LATENTS, lego_pipeline, official_spec
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
        pipe = diffusers_pipeline(path, fixed, vae)
        return Imported(pipe, f"{pipe.stack.spec.bricks[0]} of diffusers")
    vae = vae or LATENTS
    weights = read_weights(path)
    try:
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
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return Imported(pipe, f"{what} from a {weights.kind}")


def _check(model: str, pipe: LegoPipeline) -> None:
    """Raises ValueError if a pipeline is another model than its name says."""
    spec = pipe.stack.spec
    named = official_spec(model, spec.channels, spec.classes)
    for what in ("image_size", "width", "bricks"):
        if (own := getattr(spec, what)) != (theirs := getattr(named, what)):
            raise ValueError(f"this is not {model}: its {what} is {own}, not {theirs}")
