import math
from dataclasses import replace

import pytest
import torch
from conftest import awaken

import legodiff.model.brick as module
from legodiff import BrickSpec
from legodiff.evaluate.bench import peak_memory
from legodiff.model.brick import LegoBrick, geometry
from legodiff.model.layers import initialize, position_embedding
from legodiff.model.patches import PatchSample, merge, shift, split

SIZE = (16, 24)


def make(size, local, channels_in=4):
    torch.manual_seed(0)
    brick = LegoBrick(BrickSpec(size, local, 2), channels_in, 2, 32, 2, 4.0, (16, 16))
    initialize(brick, 1.0)
    return awaken(brick)


def changed_pixels(brick, image, condition, row, column):
    other = image.clone()
    other[:, :, row, column] += 1
    return (brick(other, condition) - brick(image, condition)).abs().sum(dim=(0, 1)) > 1e-6


def test_patches_do_not_see_each_other():
    brick, image, condition = make(8, 4), torch.randn(1, 4, *SIZE), torch.randn(1, 32)
    touched = changed_pixels(brick, image, condition, row=9, column=5)
    assert touched[8:, :8].all()
    assert touched.sum() == 64


def test_an_image_brick_sees_everything():
    brick, image, condition = make("image", 4), torch.randn(1, 4, *SIZE), torch.randn(1, 32)
    assert changed_pixels(brick, image, condition, row=9, column=5).all()


def test_sampled_patches_come_out_as_without_sampling():
    brick, image, condition = make(8, 2), torch.randn(3, 4, *SIZE), torch.randn(3, 32)
    sample = PatchSample.choose(torch.rand(3, 6), 0.5, (8, 8), SIZE)
    expected = torch.where(sample.mask, brick(image, condition), 0)
    assert torch.allclose(brick(image, condition, sample), expected, atol=1e-6)


def test_the_first_layer_is_a_linear_map_of_pixels_and_coordinates():
    """Independently: concatenate [image, row, column] and apply the whole weight to each field."""
    brick, image = make(8, 4, channels_in=3), torch.randn(2, 3, *SIZE)
    seen = []
    brick.blocks[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    brick(image, torch.randn(2, 32))
    rows = torch.linspace(-1, 1, 16)[:, None].expand(SIZE)
    columns = torch.linspace(-1, 1, 24)[None].expand(SIZE)
    full = torch.cat([image, torch.stack([rows, columns]).expand(2, -1, -1, -1)], dim=1)
    fields = split(split(full, 8), 4).flatten(-3)
    positions = position_embedding((2, 2), (2, 2), 32, torch.device("cpu"))
    assert torch.allclose(seen[0], brick.embed(fields) + positions, atol=1e-5)


def test_an_image_brick_stretches_its_positions_over_the_canvas():
    """Trained on 16x16 and given 16x24, its columns are squeezed into the trained range."""
    brick, image = make("image", 4), torch.zeros(1, 4, *SIZE)
    seen = []
    brick.blocks[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        brick.embed.weight.zero_()
        brick.embed.bias.zero_()
    brick(image, torch.randn(1, 32))
    expected = position_embedding((4, 6), (4, 4), 32, torch.device("cpu"))
    assert torch.allclose(seen[0][0, 0], expected)
    angles = [(column + 0.5) * 4 / 6 - 0.5 for column in range(6)]
    assert expected[:6, 0].tolist() == pytest.approx([math.sin(a) for a in angles], abs=1e-6)


def test_tokens_go_back_to_the_place_they_came_from():
    """With the blocks cut out, an output pixel depends on its own field and no other."""
    brick = make(8, 2)
    brick.blocks = torch.nn.ModuleList()
    image, condition = torch.randn(1, 4, *SIZE), torch.randn(1, 32)
    touched = changed_pixels(brick, image, condition, row=10, column=19)
    assert touched[10:12, 18:20].all()
    assert touched.sum() == 4


@pytest.mark.parametrize("size", [8, "image"])
def test_the_training_canvas_is_what_it_was_beside_other_canvases(size):
    brick, condition = make(size, 4), torch.randn(1, 32)
    image = torch.randn(1, 4, 16, 16)
    before = brick(image, condition)
    brick(torch.randn(1, 4, 32, 48), condition)
    assert torch.equal(brick(image, condition), before)


def test_merge_of_all_patches_is_the_brick_on_each(monkeypatch):
    """A patch-brick over a canvas = the brick on every patch alone, coordinates being equal."""
    brick, image, condition = make(8, 4), torch.randn(1, 4, *SIZE), torch.randn(1, 32)
    with torch.no_grad():
        brick.embed.weight[:, -2 * 16 :] = 0  # blind to coordinates
    patches = split(image, 8)
    alone = torch.stack([brick(patch, condition) for patch in patches.unbind(1)], dim=1)
    assert torch.allclose(merge(alone, SIZE), brick(image, condition), atol=1e-6)


def test_geometry_is_made_once_and_serves_everyone():
    """What inference or a traced graph saw first must not reach training."""
    geometry.cache_clear()
    brick, image, condition = make(8, 4), torch.randn(1, 4, *SIZE), torch.randn(1, 32)
    torch.export.export(brick, (image, condition), strict=False)
    assert geometry.cache_info().currsize == 0
    with torch.inference_mode():
        brick(image, condition)
    brick(image, condition).sum().backward()
    assert geometry.cache_info().hits == 1
    assert brick.embed.weight.grad.abs().sum() > 0
    brick(torch.randn(1, 4, 16, 16), condition)
    brick.double()(image.double(), condition.double())
    assert geometry.cache_info().misses == 2


def test_a_phase_moves_the_grid_of_patches():
    """As if the image were moved, patch by patch computed, and moved back."""
    brick, image, condition = make(8, 4), torch.randn(2, 4, *SIZE), torch.randn(2, 32)
    brick.spec = BrickSpec(8, 4, 2, phase=3)
    touched = changed_pixels(brick, image[:1], condition[:1], row=9, column=5)
    assert touched[3:11, 3:11].all()
    assert touched.sum() == 64
    touched = changed_pixels(brick, image[:1], condition[:1], row=0, column=2)  # beyond the corner
    rows, columns = [0, 1, 2, *range(11, 16)], [0, 1, 2, *range(19, 24)]
    assert touched[rows][:, columns].all()
    assert touched.sum() == 64


def test_a_phase_leaves_each_pixel_its_coordinates():
    """What is told of a pixel does not depend on how patches are laid."""
    brick = make(8, 4)
    _, like = geometry.cache_clear(), torch.zeros(1)
    laid = replace(brick.spec, phase=5)
    seen = []
    for spec in (brick.spec, laid):
        fields, positions = geometry(spec, SIZE, brick.trained, 32, like.device)
        patches = merge(fields.unflatten(-1, (2, 4, 4)), (8, 8))
        seen.append((shift(merge(patches, SIZE), spec.phase), positions))
    assert torch.equal(seen[0][0], seen[1][0])
    assert torch.equal(seen[0][1], seen[1][1])


def test_sampled_patches_of_a_moved_grid():
    brick, image, condition = make(8, 2), torch.randn(3, 4, *SIZE), torch.randn(3, 32)
    brick.spec = replace(brick.spec, phase=4)
    sample = PatchSample.choose(torch.rand(3, 6), 0.5, (8, 8), SIZE, phase=4)
    assert sample.mask.float().mean() == 0.5
    expected = torch.where(sample.mask, brick(image, condition), 0)
    assert expected.abs().sum() > 0
    assert torch.allclose(brick(image, condition, sample), expected, atol=1e-6)


def test_many_patches_run_in_parts_and_memory_stays(monkeypatch):
    """The same estimate, and what there is at once besides images grows no more."""
    monkeypatch.setattr(module, "AT_ONCE", 256)
    brick, condition = make(8, 2), torch.randn(1, 32)

    def beside_images(height):
        image = torch.randn(1, 4, height, 64)
        with torch.no_grad():
            parts = brick(image, condition)
            peak = peak_memory(lambda: brick(image, condition), torch.device("cpu"))
        assert torch.allclose(parts, brick(image, condition), atol=1e-5)  # to learn: all at once
        return peak - 4 * 4 * image.numel()  # moved, cut twice, and what comes out

    small, large = beside_images(64), beside_images(256)
    assert large < 1.3 * small
    monkeypatch.setattr(module, "AT_ONCE", 2**20)
    assert beside_images(256) > 3 * small
