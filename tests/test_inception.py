from pathlib import Path

import numpy as np
import pytest
import torch

from legodiff.evaluate.inception import SIDE, Inception, resize


@pytest.fixture(scope="module")
def network():
    """Random weights, the same as those that the golden figures were made with."""
    made, generator = Inception().eval(), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in made.state_dict().items():
            if name.endswith("conv.weight") or name == "fc.weight":
                scale = (2 / tensor[0].numel()) ** 0.5
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * scale)
            elif name.endswith(("running_var", "bn.weight")):
                tensor.copy_(0.75 + 0.5 * torch.rand(tensor.shape, generator=generator))
            elif not name.endswith("num_batches_tracked"):
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.1)
    return made


@torch.no_grad()
def test_it_is_torch_fidelitys(network):
    """Every 32nd feature of two images, from torch-fidelity 0.4 with the same weights."""
    images = torch.randint(
        *(0, 256, (2, 3, 40, 32)), dtype=torch.uint8, generator=torch.Generator().manual_seed(5)
    )
    found = network(images)
    with np.load(Path(__file__).parent / "golden" / "inception.npz", allow_pickle=False) as known:
        for name in ("pool", "spatial", "logits"):
            mine, theirs = getattr(found, name)[:, ::32].numpy(), known[name]
            assert mine == pytest.approx(theirs, abs=float(2e-5 * np.abs(theirs).max()))
    assert found.pool.shape == (2, 2048)
    assert found.spatial.shape == (2, 17 * 17 * 7)


def test_pixels_are_resized_from_their_corner():
    """Pixel i of the result is at i * old / new, between its neighbours; the last ones repeat."""
    image = torch.tensor([[0.0, 10.0], [20.0, 30.0]])[None, None]
    rows = [[0, 5, 10, 10], [10, 15, 20, 20], [20, 25, 30, 30], [20, 25, 30, 30]]
    assert resize(image, 4)[0, 0].tolist() == rows
    same = torch.rand(1, 3, SIDE, SIDE)
    assert torch.equal(resize(same, SIDE), same)
    assert resize(image.repeat(1, 1, 300, 200), SIDE).shape == (1, 1, SIDE, SIDE)
