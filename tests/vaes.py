"""Tiny random VAEs, one latent for 4x4 pixels."""

import numpy as np
import pytest
import torch

from legodiff.data import Unreadable


def make_vae(folder, seed=0, **changes):
    """Saves an AutoencoderKL with random weights; returns the folder."""
    diffusers = pytest.importorskip("diffusers")
    config = {
        "block_out_channels": (8, 8, 8),
        "down_block_types": ("DownEncoderBlock2D",) * 3,
        "up_block_types": ("UpDecoderBlock2D",) * 3,
        "layers_per_block": 1,
        "latent_channels": 4,
        "norm_num_groups": 4,
        "scaling_factor": 0.5,
        "shift_factor": 0.25,
    }
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        diffusers.AutoencoderKL(**config | changes).save_pretrained(folder)
    return folder


class Pictures:
    """Random uint8 images whose first pixel tells the index; some cannot be read."""

    def __init__(self, count=10, channels=3, size=(16, 24), classes=3, broken=()):
        self.channels, self.size, self.broken = channels, size, broken
        self.class_names = tuple("abcdef"[:classes])
        self.images = np.random.default_rng(0).integers(0, 256, (count, channels, *size), np.uint8)

    def __len__(self):
        return len(self.images)

    def read(self, index, rng=None):
        if index in self.broken:
            raise Unreadable(f"{index}.png", "cut short")
        return self.images[index], index % max(1, len(self.class_names))
