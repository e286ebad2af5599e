"""What a run learns from: the data, and the codec that fits them."""

from pathlib import Path

import numpy as np

from legodiff import store
from legodiff.codec import Codec, LatentCodec, PixelCodec, codec_from_dict
from legodiff.config import RunConfig
from legodiff.data import ImageData, Unreadable, open_data
from legodiff.data.latents import Latents
from legodiff.model.spec import ForeignSpec
from legodiff.train.checkpoint import list_checkpoints
from legodiff.train.distributed import World
from legodiff.vae import check_same

SAMPLE, VALUES = 4096, 2**26  # images, and numbers, that statistics are taken from at most


def open_inputs(config: RunConfig, run: Path | None, world: World) -> tuple[ImageData, Codec]:
    """The data of a configuration, and the codec of the run if it has begun, else one that fits.

    Raises ValueError, in one line, for data that are not there or do not fit the model.
    """
    settings = config.data
    spec = config.model.spec(channels=settings.channels or 3, classes=0)
    data = open_data(
        settings.path, spec.image_size, settings.channels, settings.flip, settings.alpha
    )
    if isinstance(data, Latents) and data.size != spec.image_size:
        height, width = data.size
        raise ValueError(
            f"the latents of {settings.path} are {height}x{width} and the model is for "
            f"{spec.image_size[0]}x{spec.image_size[1]}; choose a preset of that size, or "
            f"--size {height}x{width}"
        )
    codec: Codec
    if run is not None and list_checkpoints(run):
        codec = codec_from_dict(store.read_config(run)["codec"])
        if isinstance(codec, LatentCodec) and isinstance(data, Latents):
            check_same(codec.vae, data.vae)
    elif config.train.init is not None and isinstance(spec.bricks[0], ForeignSpec):
        # What the base was trained on is what it must be given.
        base = store.locate(config.train.init, needed=[store.CONFIG])
        codec = codec_from_dict(store.read_config(base)["codec"])
    else:
        fitted = fit_codec(data, spec.sigma_data).to_dict() if world.leads else None
        codec = codec_from_dict(world.share(fitted))
    if settings.vae is not None:
        if not isinstance(codec, LatentCodec):
            raise ValueError(f"data.vae is {settings.vae}, and {settings.path} holds no latents")
        codec.attach(settings.vae)
    return data, codec


def fit_codec(data: ImageData, sigma_data: float) -> Codec:
    """The codec that brings data to mean 0 and deviation ``sigma_data``.

    From all images, or from evenly spaced ones if they are many; unreadable ones are left out.
    """
    if isinstance(data, Latents):
        return LatentCodec.fit(data.vae, *data.statistics(), sigma_data)
    values = data.channels * data.size[0] * data.size[1]
    count = min(len(data), SAMPLE, max(1, VALUES // values))
    images = []
    for index in np.linspace(0, len(data) - 1, count).round().astype(int):
        try:
            images.append(data.read(int(index))[0])
        except Unreadable as error:
            trouble = error
    if not images:
        raise ValueError(f"not one image can be read; the last: {trouble}")
    return PixelCodec.fit(np.stack(images), sigma_data)
