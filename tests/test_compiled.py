import numpy as np
import pytest
import torch
from conftest import awaken
from torch._dynamo.testing import CompileCounter

from legodiff import BrickSpec, LegoPipeline, LegoStack, SkipPlan, preset
from legodiff.model.compiled import CompiledStack, compile_blocks

PLAN = SkipPlan(((0.0, (0, 1)), (0.5, (0,))))


@pytest.fixture
def stack():
    torch._dynamo.reset()
    torch.manual_seed(0)
    bricks = (BrickSpec("image", 4, 1), BrickSpec(8, 4, 1))
    return awaken(LegoStack(preset("tiny-pr-16", channels=1, classes=3, bricks=bricks))).eval()


def inputs(count):
    return torch.randn(count, 1, 16, 16), torch.rand(count) + 0.1, torch.arange(count) % 3


@torch.no_grad()
def test_it_denoises_as_the_stack_does_with_one_graph_for_every_subset(stack):
    counter = CompileCounter()
    compiled = CompiledStack(stack, backend=counter)
    subsets = [(0, 1), (0,), (1,)]
    with torch._dynamo.config.patch(recompile_limit=2):  # as if there were more than it allows
        for count in (3, 8, 2, 1, 5):
            for bricks in subsets:
                data = inputs(count)
                assert torch.allclose(compiled(*data, bricks), stack(*data, bricks), atol=1e-6)
    assert counter.frame_count == len(subsets)


@torch.no_grad()
def test_a_lone_image_has_its_own_graph_unless_there_is_one(stack):
    counter = CompileCounter()
    compiled = CompiledStack(stack, backend=counter)
    for count, graphs in ((1, 1), (1, 1), (4, 2), (1, 2), (3, 2)):
        data = inputs(count)
        assert torch.allclose(compiled(*data), stack(*data), atol=1e-6)
        assert counter.frame_count == graphs
    without = [torch.randn(2, 1, 16, 16), torch.ones(2)]
    assert torch.allclose(compiled(*without), stack(*without), atol=1e-6)


def test_nothing_compiles_inside_a_run(stack):
    counter = CompileCounter()
    pipe = LegoPipeline(stack, label_dropout=0.1)
    how = {"labels": [0, 1, 2, 0, 1], "seeds": range(5), "steps": 6, "plan": PLAN, "batch": 2}
    how |= {
        "guidance": 1.5,
        "guidance_interval": (0.1, 5.0),
    }  # 2 or 4 evaluations at a time, 1 or 2
    eager = pipe(**how)
    compiled = pipe.compile(backend=counter)(**how)
    assert counter.frame_count == 2  # of two subsets
    assert (compiled.nfe, compiled.flops) == (eager.nfe, eager.flops)
    with torch.compiler.set_stance("fail_on_recompile"):
        again = pipe(**how)
        wide = pipe(0, 0, 3, size=(16, 48), plan=PLAN)  # windows of the same size
    assert counter.frame_count == 2
    assert len(wide.images) == 1
    for images in (compiled.images, again.images):
        for one, other in zip(images, eager.images, strict=True):
            assert np.abs(np.asarray(one).astype(int) - np.asarray(other)).max() <= 1


@pytest.mark.parametrize(
    ("options", "copied"),
    [({"mode": "reduce-overhead"}, True), ({"mode": "max-autotune"}, True), ({}, False)],
)
@torch.no_grad()
def test_what_the_next_call_overwrites_is_copied(stack, monkeypatch, options, copied):
    """CUDA graphs give the same memory each time."""
    memory = torch.empty(2, 1, 16, 16)

    def recorded(run, **_):
        return lambda *inputs: [memory.copy_(run(*inputs)[-1])]

    monkeypatch.setattr(torch, "compile", recorded)
    compiled, one, other = CompiledStack(stack, **options), inputs(2), inputs(2)
    first = compiled(*one)
    compiled(*other)
    assert torch.equal(first, stack(*one)) == copied


def test_without_a_compiler_there_is_a_line(stack):
    def broken(graph, inputs):
        raise RuntimeError("no C++ here")

    with pytest.raises(ValueError, match=r"does not work here; go without it .*no C"):
        CompiledStack(stack, backend=broken)(*inputs(2))


def test_blocks_learn_as_without_and_keep_less(stack):
    """Through the real compiler: the gradient, the names, and how much autograd saves."""
    noisy, sigma, labels = inputs(3)
    found = []
    names = set(stack.state_dict())
    for compiled in (False, True):
        if compiled:
            compile_blocks(stack)
        saved = {}

        def pack(tensor, saved=saved):
            saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        stack.zero_grad()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = sum(e.square().mean() for e in stack.estimates(noisy, sigma, labels))
        loss.backward()
        gradients = [parameter.grad.clone() for parameter in stack.parameters()]
        found.append((loss.detach(), gradients, sum(saved.values())))
    (loss, gradients, size), (other_loss, other_gradients, smaller) = found
    assert torch.allclose(loss, other_loss, rtol=1e-5)
    for one, other in zip(gradients, other_gradients, strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-5)
    assert smaller < size
    assert set(stack.state_dict()) == names
