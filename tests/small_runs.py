"""Small runs, for the tests of training."""

import socket

import numpy as np
import torch
from safetensors.torch import load_file

from legodiff import planning
from legodiff.codec import PixelCodec
from legodiff.config import load_config
from legodiff.store import read_weights
from legodiff.train.checkpoint import list_checkpoints


class Bars:
    """Two classes of 16x16 images: a vertical or a horizontal bar."""

    channels, size, class_names = 1, (16, 16), ("upright", "lying")

    def __len__(self):
        return 40

    def read(self, index, rng=None):
        image = np.zeros((1, 16, 16), np.uint8)
        place = 3 + index % 10
        if index % 2:
            image[:, place : place + 3] = 255
        else:
            image[:, :, place : place + 3] = 255
        return image, index % 2


CODEC = PixelCodec((-0.6,), 0.6)


def config(*changes):
    return load_config(
        "digits",
        [
            *("model.preset=tiny-pr-16", "train.images=96", "train.batch=16"),
            *("train.checkpoint_images=32", "train.warmup_images=32"),
            *("train.picture_images=0", *changes),
        ],
    )


def quiet(_):
    pass


def free_port():
    """A port of this machine that nobody listens on."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def plan_quickly(monkeypatch):
    """A search for plans in seconds: few plans, four images."""
    find = planning.find_plans

    def few(pipe, full, images, batch, *report):
        return find(pipe, full, 4, 4, *report)

    monkeypatch.setattr(planning, "find_plans", few)
    for name, value in (("GRIDS", 3), ("CHECKED", 4), ("PAPER", 2)):
        monkeypatch.setattr(planning, name, value)


def ended(children, seconds=300):
    """Exit codes of processes, which are killed if they do not end."""
    try:
        for child in children:
            child.join(seconds)
        return [child.exitcode for child in children]
    finally:
        for child in children:
            child.kill()


def weights(run, name="model"):
    return read_weights(run / f"{name}.safetensors")


def checkpoint_tensors(run, number=-1):
    """The tensors of a run's newest checkpoint."""
    folder = list_checkpoints(run)[number]
    return {k: v for file in folder.glob("*.safetensors") for k, v in load_file(file).items()}


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)
