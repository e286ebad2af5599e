"""A model as a pipeline's folder of diffusers.

A network of diffusers that nothing was built upon leaves as it came, and opens without us. Any
other stack leaves with a pipeline of ours, which takes diffusers' arguments and needs legodiff.
"""

from importlib import import_module
from pathlib import Path
from typing import Any

from legodiff.codec import PixelCodec
from legodiff.interop.diffusers_models import SCHEDULE
from legodiff.model.spec import ForeignSpec
from legodiff.pipeline import LegoPipeline


def write_diffusers(pipe: LegoPipeline, folder: Path) -> bool:
    """Writes a pipeline's folder; returns whether diffusers opens it without us.

    Raises ValueError if a brick is a function, which no file can hold.
    """
    pipe.stack.check_saved()
    plain = is_plain(pipe)
    if plain:
        _plain_pipeline(pipe).save_pretrained(folder)
    else:
        ours: Any = import_module("legodiff.interop.diffusers_pipeline")  # which needs diffusers
        model = ours.LegoModel(pipe.to_dict(), [curve.to_dict() for curve in pipe.curves])
        model.stack.load_weights(pipe.stack.state_dict(), "the model")
        ours.LegoDiffusersPipeline(model).save_pretrained(folder)
    return plain


def is_plain(pipe: LegoPipeline) -> bool:
    """Whether a pipeline of diffusers' own draws as this model does.

    That is a ``UNet2DModel`` alone, without classes, that predicts over a table of timesteps and
    makes pixels in [-1, 1].
    """
    brick, *above = pipe.stack.spec.bricks
    return (
        not above
        and isinstance(brick, ForeignSpec)
        and brick.network == "UNet2DModel"
        and brick.prediction in ("epsilon", "v_prediction", "sample")
        and not brick.classes
        and bool(brick.config.get("sample_size"))
        and pipe.codec == PixelCodec((0.0,) * pipe.stack.spec.channels)
    )


def _plain_pipeline(pipe: LegoPipeline) -> Any:
    diffusers: Any = import_module("diffusers")
    brick: Any = pipe.stack.bricks[0]
    table = {
        theirs: brick.spec.schedule[ours]
        for theirs, ours in SCHEDULE.items()
        if ours in brick.spec.schedule
    }
    scheduler = diffusers.DDIMScheduler(
        **table, prediction_type=brick.spec.prediction, clip_sample=False
    )
    return diffusers.DDIMPipeline(brick.network, scheduler)
