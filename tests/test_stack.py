from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from conftest import awaken, noisy_batch, samples_of

from legodiff import LegoStack, preset
from legodiff.model.precondition import OBJECTIVES, linear_estimate, to_clean, to_raw


def calls(stack):
    """The bricks that are executed from now on, in order."""
    run = []
    for number, brick in enumerate(stack.bricks):
        brick.register_forward_hook(lambda *_, number=number: run.append(number))
    return run


@pytest.mark.parametrize("objective", ["edm", "ddpm"])
def test_a_fresh_stack_is_the_best_estimate_without_a_network(objective):
    spec = preset("tiny-pg-16", channels=1, objective=objective)
    noisy, sigma, _ = noisy_batch()
    for estimate in LegoStack(spec).estimates(noisy, sigma):
        assert torch.allclose(estimate, linear_estimate(noisy, sigma, spec.sigma_data))


def test_every_brick_refines_what_it_is_given(stack):
    """estimate_k = estimate_(k-1) + c_out F_k: a brick whose output is zero changes nothing."""
    noisy, sigma, labels = noisy_batch()
    for number, brick in enumerate(stack.bricks):
        silent = LegoStack(stack.spec)
        silent.load_state_dict(stack.state_dict())
        for parameter in silent.bricks[number].output.linear.parameters():
            parameter.data.zero_()
        estimates = silent.estimates(noisy, sigma, labels)
        before = estimates[number - 1] if number else linear_estimate(noisy, sigma, 0.5)
        assert torch.equal(estimates[number], before)
        assert not torch.allclose(stack.estimates(noisy, sigma, labels)[number], before)
        assert brick.spec == silent.bricks[number].spec


def test_a_brick_on_top_of_a_finished_model_starts_as_the_identity(stack):
    spec = replace(stack.spec, bricks=(*stack.spec.bricks, stack.spec.bricks[1]))
    taller = LegoStack(spec)
    taller.load_state_dict(stack.state_dict(), strict=False)
    batch = noisy_batch()
    assert torch.equal(taller(*batch), stack(*batch))


@pytest.mark.parametrize("bricks", [(0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2)])
def test_any_subset_runs_and_nothing_else_does(stack, bricks):
    run = calls(stack)
    batch = noisy_batch()
    estimates = stack.estimates(*batch, bricks=bricks)
    assert run == list(bricks)
    assert len(estimates) == len(bricks)
    assert torch.equal(stack(*batch, bricks=tuple(reversed(bricks))), estimates[-1])


def test_skipping_the_top_gives_the_estimate_below_it(stack):
    batch = noisy_batch()
    every = stack.estimates(*batch)
    assert torch.equal(stack(*batch, bricks=(0, 1)), every[1])
    assert torch.equal(stack(*batch, bricks=(0,)), every[0])
    assert torch.equal(stack(*batch), every[2])


def test_a_brick_above_skipped_ones_is_given_the_linear_estimate(stack):
    noisy, sigma, labels = noisy_batch()
    at = OBJECTIVES["edm"](sigma, 0.5)
    prior = linear_estimate(noisy, sigma, 0.5)
    condition = F.silu(stack.noise_embedding(at.noise) + stack.class_embedding(labels))
    raw = stack.bricks[2](torch.cat([at.scale * noisy, prior / 0.5], dim=1), condition)
    expected = prior + at.out * raw
    assert torch.allclose(stack(noisy, sigma, labels, bricks=(2,)), expected, atol=1e-6)


def test_the_papers_bricks_predict_anew():
    torch.manual_seed(0)
    spec = preset("tiny-pr-16", channels=1, refine=False)
    stack = awaken(LegoStack(spec))
    noisy, sigma, _ = noisy_batch()
    first, second = stack.estimates(noisy, sigma, bricks=(0, 1))
    at = OBJECTIVES["edm"](sigma, 0.5)
    condition = F.silu(stack.noise_embedding(at.noise))
    raw = stack.bricks[1](torch.cat([at.scale * noisy, first / 0.5], dim=1), condition)
    assert torch.allclose(second, to_clean(raw, noisy, at), atol=1e-6)


def test_raw_hand_over_gives_the_next_brick_the_raw_output():
    torch.manual_seed(0)
    spec = preset("tiny-pr-16", channels=1, refine=False, hand_over="raw")
    stack = awaken(LegoStack(spec))
    noisy, sigma, _ = noisy_batch()
    seen = []
    stack.bricks[1].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    stack.bricks[0].register_forward_hook(lambda *args: seen.append(args[2]))
    estimates = stack.estimates(noisy, sigma)
    raw, inputs = seen
    assert torch.allclose(inputs[:, 1:], raw, atol=1e-4)
    at = OBJECTIVES["edm"](sigma, 0.5)
    assert torch.allclose(to_raw(estimates[0], noisy, at), raw, atol=1e-4)


def test_an_image_depends_on_its_own_row_only(stack):
    noisy, sigma, labels = noisy_batch(batch=5)
    whole = stack(noisy, sigma, labels)
    for row in range(5):
        one = slice(row, row + 1)
        assert torch.allclose(stack(noisy[one], sigma[one], labels[one]), whole[one], atol=1e-5)


@pytest.mark.parametrize("size", [(16, 16), (8, 24), (32, 16), (40, 56)])
def test_any_canvas_that_the_bricks_divide(stack, size):
    noisy, sigma, labels = noisy_batch(size=size)
    assert stack(noisy, sigma, labels).shape == noisy.shape
    wrong, _, _ = noisy_batch(size=(16, 20))
    with pytest.raises(ValueError, match="16x20 does not fit"):
        stack(wrong, sigma, labels)


def test_height_and_width_are_not_confused():
    """A transposed model on a transposed image gives the transposed estimate."""
    torch.manual_seed(0)
    stack = awaken(LegoStack(preset("tiny-pr-16", channels=1)))
    other = LegoStack(stack.spec)
    other.load_state_dict(stack.state_dict())
    width = stack.spec.width
    for mine, theirs in zip(other.bricks, stack.bricks, strict=True):
        field = mine.spec.local

        def swap(weight, field=field):
            """Transposes the l x l field in the last dimension."""
            return weight.unflatten(-1, (-1, field, field)).transpose(-1, -2).flatten(-3)

        weight = swap(theirs.embed.weight)
        coordinates = weight[:, -2 * field**2 :].unflatten(1, (2, field**2)).flip(1).flatten(1)
        mine.embed.weight.data = torch.cat([weight[:, : -2 * field**2], coordinates], dim=1)
        mine.output.linear.weight.data = swap(theirs.output.linear.weight.T).T.contiguous()
        mine.output.linear.bias.data = swap(theirs.output.linear.bias)
    noisy, sigma, _ = noisy_batch(size=(8, 24))
    # positions: the two halves of the embedding change places, so compare with them switched off
    import legodiff.model.brick as module

    zeros = lambda grid, *_: torch.zeros(grid[0] * grid[1], width)  # noqa: E731
    module.geometry.cache_clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "position_embedding", zeros)
        transposed = other(noisy.mT.contiguous(), sigma).mT
        assert torch.allclose(transposed, stack(noisy, sigma), atol=1e-5)
    module.geometry.cache_clear()


def test_no_label_is_the_last_class(stack):
    noisy, sigma, labels = noisy_batch()
    assert torch.equal(stack(noisy, sigma), stack(noisy, sigma, torch.full_like(labels, 10)))
    assert not torch.allclose(stack(noisy, sigma), stack(noisy, sigma, labels))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.zeros(2, 3, 16, 16), torch.ones(2)), r"\(2, 3, 16, 16\).*\(B, 1, H, W\)"),
        ((torch.zeros(1, 16, 16), torch.ones(1)), "must be"),
        ((torch.zeros(2, 1, 16, 16), torch.ones(())), "one noise level for each image"),
        ((torch.zeros(2, 1, 16, 16), torch.ones(3)), "one noise level for each image"),
        ((torch.zeros(2, 1, 16, 16), torch.ones(2), None, ()), "choose at least one"),
        ((torch.zeros(2, 1, 16, 16), torch.ones(2), None, (0, 3)), "0 to 2"),
        ((torch.zeros(2, 1, 16, 16), torch.ones(2), None, (-1,)), "0 to 2"),
    ],
)
def test_wrong_input_is_one_clear_line(stack, arguments, message):
    with pytest.raises(ValueError, match=rf"^[^\n]*{message}[^\n]*$"):
        stack(*arguments)


@pytest.mark.parametrize("refine", [True, False])
def test_an_unsampled_patch_is_as_if_its_brick_were_skipped(stack, refine):
    """Each estimate equals, patch by patch, the one with or without that brick."""
    other = LegoStack(replace(stack.spec, refine=refine))
    other.load_state_dict(stack.state_dict())
    noisy, sigma, labels = noisy_batch()
    for number in range(3):
        if stack.spec.bricks[number].is_image:
            continue
        samples = [None] * 3
        samples[number] = samples_of(stack.spec)[number]
        sampled = other.estimates(noisy, sigma, labels, bricks=range(number + 1), samples=samples)
        full = other.estimates(noisy, sigma, labels, bricks=range(number + 1))
        below = full[number - 1] if number else linear_estimate(noisy, sigma, 0.5)
        expected = torch.where(samples[number].mask, full[number], below)
        assert torch.allclose(sampled[number], expected, atol=1e-5)


def test_a_fill_is_read_where_the_brick_before_did_not_run(stack):
    noisy, sigma, labels = noisy_batch()
    samples = samples_of(stack.spec)
    fill = torch.full_like(noisy, 7.0)
    seen = {}
    for number in (1, 2):
        stack.bricks[number].register_forward_pre_hook(
            lambda _, inputs, number=number: seen.update({number: inputs[0][:, 1:]})
        )
    estimates = stack.estimates(noisy, sigma, labels, samples=samples, fill=fill)
    for number in (1, 2):
        below = samples[number - 1]
        mask = torch.ones_like(noisy, dtype=torch.bool) if below is None else below.mask
        expected = torch.where(mask, estimates[number - 1], fill) / 0.5
        assert torch.allclose(seen[number], expected)


def test_a_fill_is_read_and_never_added_to(stack):
    """With a silent second brick its estimate is what was handed up, not the fill."""
    for parameter in stack.bricks[1].output.linear.parameters():
        parameter.data.zero_()
    noisy, sigma, labels = noisy_batch()
    samples = samples_of(stack.spec)
    fill = torch.full_like(noisy, 7.0)
    first, second = stack.estimates(noisy, sigma, labels, bricks=(0, 1), samples=samples, fill=fill)
    assert torch.equal(first, second)


def test_detach_stops_gradients_between_bricks(stack):
    noisy, sigma, labels = noisy_batch()
    for detach in (False, True):
        stack.zero_grad()
        stack.estimates(noisy, sigma, labels, detach=detach)[-1].sum().backward()
        reached = [brick.embed.weight.grad is not None for brick in stack.bricks]
        assert reached == [not detach, not detach, True]


def test_bfloat16_weights_take_and_give_float32(stack):
    noisy, sigma, labels = noisy_batch()
    exact = stack(noisy, sigma, labels)
    half = stack.to(torch.bfloat16)(noisy, sigma, labels)
    assert half.dtype == torch.float32
    assert (half - exact).norm() < 0.05 * exact.norm()
    assert not torch.equal(half, exact)


def test_save_and_load_are_bitwise(stack, tmp_path):
    stack.save_pretrained(tmp_path / "model")
    assert sorted(p.name for p in (tmp_path / "model").iterdir()) == [
        "config.json",
        "model.safetensors",
    ]
    other = LegoStack.from_pretrained(tmp_path / "model")
    assert other.spec == stack.spec
    assert not other.training
    batch = noisy_batch()
    assert torch.equal(other(*batch), stack(*batch))


def test_weights_that_do_not_fit_are_refused_and_nothing_is_loaded(stack):
    before = {name: tensor.clone() for name, tensor in stack.state_dict().items()}
    tensors = {name: tensor + 1 for name, tensor in before.items()}
    name = "bricks.1.embed.weight"
    wrong = [
        {n: t for n, t in tensors.items() if n != name},
        tensors | {"bricks.9.embed.weight": tensors[name]},
        tensors | {name: tensors[name][:-1]},
    ]
    for some in wrong:
        with pytest.raises(ValueError, match=r"somewhere does not fit .* 1 tensors .* bricks\."):
            stack.load_weights(some, "somewhere")
    assert all(torch.equal(stack.state_dict()[n], t) for n, t in before.items())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_blocks_can_be_rounded_and_nothing_else_is(stack, dtype, tmp_path):
    noisy, sigma, labels = noisy_batch()
    expected = stack(noisy, sigma, labels)
    kept = {name: tensor.clone() for name, tensor in stack.state_dict().items()}
    low = stack.lower(dtype)
    assert low is stack
    for name, tensor in stack.state_dict().items():
        rounded = ".blocks." in name
        assert tensor.dtype == (dtype if rounded else torch.float32), name
        assert torch.equal(tensor, kept[name].to(tensor.dtype))
    inside = []
    stack.bricks[1].blocks[0].mlp.register_forward_hook(lambda *x: inside.append(x[2].dtype))
    found = stack(noisy, sigma, labels)
    assert inside == [dtype]
    assert found.dtype == torch.float32
    assert 0 < (found - expected).norm() / expected.norm() < 2e-2
    other = torch.float16 if dtype == torch.bfloat16 else torch.bfloat16
    for wrong in (other, torch.float32, torch.int8):
        with pytest.raises(ValueError, match=r"blocks of \S+ cannot be rounded to"):
            stack.lower(wrong)
    stack.to(torch.float32)  # what is lost is lost
    with pytest.raises(ValueError, match="weights were rounded to draw"):
        stack.save_pretrained(tmp_path / "low")
    assert not (tmp_path / "low").exists()
