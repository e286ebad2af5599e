"""Opens a model of others as a pipeline of ours, whatever it is."""

from pathlib import Path
from typing import NamedTuple

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
    path: Path, model: str | None = None, heads: int | None = None, vae: VaeSpec = LATENTS
) -> Imported:
    """A checkpoint of LEGO's authors, or of DiT's, as a pipeline. Nothing in the file is run.

    Args:
        path: a pickle in EDM's format, a file of ``torch.save``, safetensors or NPZ.
        model: the authors' name of it, such as "lego_L_PG_64"; checked.
        heads: of the attention, for widths other than those of the published models.
        vae: what made the latents of a model of latents.

    Raises ValueError, in one line that names the file, for anything else.
    """
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
