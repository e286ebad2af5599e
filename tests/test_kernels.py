import pytest
import torch
import torch.nn.functional as F
from torch import nn

from legodiff.model import kernels
from legodiff.model.kernels import attend, linear
from legodiff.model.layers import Linear, mlp


@pytest.fixture
def amd(monkeypatch):
    monkeypatch.setattr(kernels, "prefers_one_dnn", lambda: True)


def plain(x, weight, bias, gelu):
    out = x @ weight.T + bias
    return F.gelu(out, approximate="tanh") if gelu else out


def operations(work):
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        work()
    return {event.key for event in profile.key_averages()}


def weights(wide=12, inner=8):
    torch.manual_seed(0)
    return torch.randn(wide, inner, requires_grad=True), torch.randn(wide, requires_grad=True)


@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize("grad", [False, True])
def test_a_linear_layer_is_the_plain_one(gelu, grad):
    weight, bias = weights()
    x = torch.randn(3, 5, 5, 8)
    with torch.set_grad_enabled(grad):
        out = linear(x, weight, bias, gelu)
    assert torch.allclose(out, plain(x, weight, bias, gelu), atol=1e-5)
    assert out.requires_grad == grad


@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.usefixtures("amd")
def test_on_amd_too(gelu, grad):
    test_a_linear_layer_is_the_plain_one(gelu, grad)


@pytest.mark.parametrize("frozen", [(), (0,), (1,), (2,), (1, 2)])
@pytest.mark.usefixtures("amd")
def test_gradients_of_one_dnn(frozen):
    weight, bias = weights()
    inputs = [torch.randn(2, 3, 5, 8, requires_grad=True), weight, bias]
    for number in frozen:
        inputs[number].requires_grad_(False)
    learning = [x for x in inputs if x.requires_grad]
    found = torch.autograd.grad(linear(*inputs).square().sum(), learning)
    expected = torch.autograd.grad(plain(*inputs, False).square().sum(), learning)
    for one, other in zip(found, expected, strict=True):
        assert torch.allclose(one, other, rtol=1e-5, atol=1e-4)


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch without oneDNN")
def test_who_multiplies(monkeypatch):
    """The plain path where gradients, autocast or another type need it; else GELU comes along."""
    monkeypatch.setattr(kernels, "prefers_one_dnn", lambda: False)
    layer, x = Linear(8, 12, gelu=True), torch.randn(70, 8)

    def fused():
        return "mkldnn::_linear_pointwise" in operations(lambda: layer(x))

    assert not fused()
    with torch.no_grad():
        assert fused()
        assert "mkldnn::_linear_pointwise" not in operations(lambda: layer(x[:63]))
        assert "aten::gelu" not in operations(lambda: layer(x))
        with torch.autocast("cpu", torch.bfloat16):
            assert not fused()
        layer, x = layer.double(), x.double()
        assert not fused()
        layer, x = layer.float(), x.float()
        monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
        assert not fused()
    monkeypatch.undo()
    layer = Linear(8, 12)
    monkeypatch.setattr(kernels, "prefers_one_dnn", lambda: False)
    assert not fused()
    monkeypatch.setattr(kernels, "prefers_one_dnn", lambda: True)
    assert fused()


@pytest.mark.usefixtures("amd")
def test_a_second_gradient_is_refused_and_not_wrong():
    weight, bias = weights()
    x = torch.randn(70, 8, requires_grad=True)
    (slope,) = torch.autograd.grad(linear(x, weight, bias).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.square().sum().backward()


@pytest.mark.parametrize("grad", [False, True])
def test_forward_derivatives_take_the_plain_path(grad):
    weight, bias = (value.detach() for value in weights())
    x, direction = torch.randn(2, 70, 8)
    with torch.set_grad_enabled(grad):
        _, found = torch.func.jvp(lambda x: linear(x, weight, bias, True), (x,), (direction,))
        _, expected = torch.func.jvp(lambda x: plain(x, weight, bias, True), (x,), (direction,))
    assert expected.abs().sum() > 1
    assert torch.allclose(found, expected, atol=1e-5)


def test_tiles_compile_for_bricks_and_canvases_of_many_sizes(monkeypatch):
    """Also where the number of patches is open in a graph."""
    torch._dynamo.reset()
    monkeypatch.setattr(kernels, "rows_of_tile", lambda _: 128)
    compiled = torch.compile(attend, backend="aot_eager", fullgraph=True)
    for patches in (64, 16, 48, 7):
        qkv = torch.randn(2, patches, 4, 3, 2, 8)
        assert torch.allclose(compiled(qkv), attend(qkv), atol=1e-6)


def test_the_mlp_of_a_block_by_hand():
    torch.manual_seed(0)
    layers = mlp(8, 4.0)
    assert set(layers.state_dict()) == {"0.weight", "0.bias", "2.weight", "2.bias"}
    x = torch.randn(100, 8)
    hidden = nn.GELU(approximate="tanh")(x @ layers[0].weight.T + layers[0].bias)
    expected = hidden @ layers[1].weight.T + layers[1].bias
    with torch.no_grad():
        assert torch.allclose(layers(x), expected, atol=1e-6)
    assert torch.allclose(layers(x), expected, atol=1e-6)


def softmax_attention(qkv):
    """Patch by patch, head by head."""
    query, key, value = qkv.unbind(3)  # each (B, P, N, heads, d)
    scores = torch.einsum("bpnhd,bpmhd->bphnm", query, key) / qkv.shape[-1] ** 0.5
    return torch.einsum("bphnm,bpmhd->bpnhd", scores.softmax(-1), value).flatten(-2)


@pytest.mark.parametrize("shape", [(2, 7, 4), (3, 64, 4), (2, 16, 16), (2, 6, 32), (2, 2, 33)])
@pytest.mark.parametrize("rows", [1, 16, 128])
def test_attention_is_softmax_attention_within_a_patch(shape, rows, monkeypatch):
    monkeypatch.setattr(kernels, "rows_of_tile", lambda _: rows)
    qkv = torch.randn(*shape, 3, 2, 8)
    assert torch.allclose(attend(qkv), softmax_attention(qkv), atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("grad", [False, True])
def test_how_many_rows_on_a_cpu(dtype, grad):
    """Short sequences are together where that is faster, and on their own in an exported graph."""
    qkv = torch.randn(2, 8, 4, 3, 2, 8, dtype=dtype, requires_grad=grad)
    rows = 1 if grad and dtype == torch.bfloat16 else 16

    class Attend(nn.Module):
        def forward(self, qkv):
            return attend(qkv)

    with torch.set_grad_enabled(grad):
        assert kernels.rows_of_tile(qkv) == rows
        graph = torch.export.export(Attend(), (qkv,)).graph
        assert attend(qkv).requires_grad == grad
    seen = [node.args[0].meta["val"].shape for node in graph.nodes if "attention" in str(node)]
    assert seen == [(16, 2, 4, 8)]


@pytest.mark.parametrize(
    ("shape", "rows"),
    [((2, 64, 4), 128), ((2, 16, 4), 64), ((2, 7, 4), 4), ((2, 24, 16), 128), ((1, 4, 64), 64)],
)
def test_short_sequences_share_tiles(shape, rows, monkeypatch):
    """As many patches of an image as fit in a tile and divide its patches evenly."""
    seen = []
    attention = F.scaled_dot_product_attention

    def spy(query, key, value, mask=None):
        seen.append(tuple(query.shape))
        return attention(query, key, value, mask)

    monkeypatch.setattr(kernels, "rows_of_tile", lambda _: 128)
    monkeypatch.setattr(F, "scaled_dot_product_attention", spy)
    attend(torch.randn(*shape, 3, 2, 8))
    tokens = shape[0] * shape[1] * shape[2]
    assert seen == [(tokens // rows, 2, rows, 8)]


@pytest.mark.parametrize("rows", [1, 16, 128])
def test_more_sequences_than_a_kernel_takes(rows, monkeypatch):
    monkeypatch.setattr(kernels, "rows_of_tile", lambda _: rows)
    qkv = torch.randn(5, 33, 4, 3, 2, 8)
    whole = attend(qkv)
    monkeypatch.setattr(kernels, "MAX_SEQUENCES", 8)
    assert torch.allclose(attend(qkv), whole, atol=1e-6)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("rows", [1, 16, 128])
def test_65536_sequences_on_cuda(rows, monkeypatch):
    monkeypatch.setattr(kernels, "rows_of_tile", lambda _: rows)
    qkv = torch.randn(256, 257, 4, 3, 6, 64, device="cuda", dtype=torch.bfloat16)
    qkv.requires_grad_()
    found = attend(qkv)
    found.sum().backward()
    expected = softmax_attention(qkv[-1:].detach().float())
    assert (found[-1:].float() - expected).abs().max() < 2e-2
    assert qkv.grad.isfinite().all()
