"""What one H100 is measured by: attention, a block, drawing, a lone image, and training steps."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from legodiff.diffusion.guidance import guided
from legodiff.evaluate.authors import beside_authors
from legodiff.evaluate.bench import Candidate, Row, Spread, ratio
from legodiff.evaluate.contenders import (
    Contender,
    Setting,
    candidates,
    drawings,
    drawn,
    fresh,
    of_stack,
)
from legodiff.evaluate.opponents import diffusers, dit
from legodiff.evaluate.suites import Bound, Build, Case, compiled, time
from legodiff.model.brick import LegoBrick
from legodiff.model.compiled import CompiledStack
from legodiff.model.kernels import TILES, attend
from legodiff.model.presets import PRESETS, preset
from legodiff.model.stack import LegoStack
from legodiff.sampling import Sampling

BF16 = torch.bfloat16
SHAPES = ((64, 6, 64), (256, 6, 64), (256, 16, 64), (64, 16, 72))
"""Patches of four tokens, heads and their width: S and L at 32x32 and 64x64, XL at 32x32."""
IMAGES = 64
"""At a time."""
STACK, RIVAL = "lego-xl-pg-32", "dit-xl-2-32"


def h100(device: torch.device, authors: Path | None) -> Iterator[Build]:
    """Meant for one H100. Theirs stands beside S alone: of L they have other depths."""
    for patches, heads, size in SHAPES:
        for images in (IMAGES // 4, 4 * IMAGES):
            yield partial(attention, (images, patches, 4, 3, heads, size), device)
    yield partial(block, device)
    yield partial(sampling, device)
    yield partial(lone_image, device)
    for name, path in (("lego-s-pg-64", authors), ("lego-l-pg-64", None)):
        yield partial(training, name, device, path)


def attention(shape: tuple[int, ...], device: torch.device) -> Case:
    """Ways to attend among four tokens: queries, keys and values (B, P, N, 3, heads, d)."""
    torch._dynamo.reset()  # each shape has graphs of its own
    qkv = torch.randn(shape, device=device, dtype=BF16)
    images, patches, count, _, heads, size = shape
    flops = 4 * patches * count**2 * heads * size
    ways: dict[str, Callable[[Tensor], Tensor]] = {
        "attend": attend,
        "attend, compiled": torch.compile(attend, dynamic=False),
        "elementwise, compiled": torch.compile(elementwise, dynamic=False),
        "FlexAttention, compiled": flexible(qkv),
        "batched products": products,
    }
    entries = [timed(name, partial(way, qkv), images, flops) for name, way in ways.items()]
    title = f"attention of {images * patches:,} sequences of {count}, {heads} heads of {size}"
    return Case(title, device, BF16, entries)


def flexible(qkv: Tensor) -> Callable[[Tensor], Tensor]:
    """FlexAttention over all tokens as one sequence, of which only tiles on the diagonal count."""
    from torch.nn.attention.flex_attention import BlockMask, flex_attention

    images, patches, count, _, heads, size = qkv.shape
    tiles = images * patches * count // TILES["cuda"]
    order = torch.arange(tiles, dtype=torch.int32, device=qkv.device)
    mask = BlockMask.from_kv_blocks(
        torch.ones_like(order)[None, None],
        order[None, None, :, None].repeat(1, 1, 1, tiles),
        BLOCK_SIZE=TILES["cuda"],
        mask_mod=lambda batch, head, query, key: query // count == key // count,
    )
    attention = torch.compile(flex_attention, dynamic=False)

    def run(qkv: Tensor) -> Tensor:
        query, key, value = qkv.view(1, -1, 3, heads, size).permute(2, 0, 3, 1, 4)
        mixed: Tensor = attention(query, key, value, block_mask=mask)
        return mixed.transpose(1, 2).reshape(images, patches, count, heads * size)

    return run


def products(qkv: Tensor) -> Tensor:
    """Scores and means as batched matrix products."""
    query, key, value = qkv.unbind(3)  # each (B, P, N, heads, d)
    scores = torch.einsum("bpnhd,bpmhd->bphnm", query, key) / qkv.shape[-1] ** 0.5
    return torch.einsum("bphnm,bpmhd->bpnhd", scores.softmax(-1), value).flatten(-2)


def elementwise(qkv: Tensor) -> Tensor:
    """Each token with all others written out, for a compiler to make one kernel of."""
    query, key, value = qkv.unbind(3)
    out = []
    for token in range(qkv.shape[2]):
        scores = (query[:, :, token, None] * key).float().sum(-1) / qkv.shape[-1] ** 0.5
        weights = scores.softmax(2)[..., None].to(qkv.dtype)
        out.append((weights * value).sum(2))
    return torch.stack(out, dim=2).flatten(-2)


def timed(name: str, run: Callable[[], object], images: int, flops: int = 0) -> Candidate:
    """For its time alone."""
    return Candidate(name, run, images, 0, flops, followed=False)


def block(device: torch.device) -> Case:
    """One block of the 4x4-brick of XL at 32x32."""
    spec = preset(STACK, channels=4)
    stack = fresh(of_stack(STACK, spec))
    brick = stack.bricks[0]  # type: ignore[index]
    assert isinstance(brick, LegoBrick)
    layer, width = brick.blocks[0].to(device, BF16), spec.width
    tokens = torch.randn(IMAGES, 64, 4, width, device=device, dtype=BF16)
    condition = torch.randn(IMAGES, width, device=device, dtype=BF16)
    flops = 2 * (12 * width**2 * 64 * 4 + 6 * width**2)

    def run(step: Callable[..., object]) -> None:
        with torch.no_grad():
            step(tokens, condition)

    ways: dict[str, Callable[..., object]]
    ways = {"block": layer, "block, compiled": torch.compile(layer)}
    entries = [timed(name, partial(run, way), IMAGES, flops) for name, way in ways.items()]
    bounds = [
        Bound(f"{name}, {IMAGES} images", (name,), whole_batch, 1.0, unit="ms") for name in ways
    ]
    return Case("one block of a 4x4 brick", device, BF16, entries, bounds)


def whole_batch(row: Row) -> Spread:
    """Milliseconds of all images together."""
    return Spread.of([IMAGES * time for time in row.milliseconds])


def sampling(device: torch.device) -> Case:
    """Drawing without the top brick in half of the steps, beside a DiT of the same evaluations."""
    setting = Setting((32, 32), IMAGES, device, BF16)
    ours = of_stack(STACK, preset(STACK, channels=4, classes=1000), also=[(0, 1)])
    rival = of_stack(RIVAL, preset(RIVAL, channels=4, classes=1000))
    full, half = drawings(ours.spec, Sampling(), (), skip=0.5)

    def drawing(whole: Row, part: Row, other: Row) -> Spread:
        names = (ours.name, ours.title((0, 1)))
        rows = [replace(row, name=name) for row, name in zip((whole, part), names, strict=True)]
        evaluations = full.calls.total()
        return ratio(
            drawn(ours, half, rows).milliseconds, [evaluations * ms for ms in other.milliseconds]
        )

    bounds = [
        Bound(
            f"time: an image without the top brick in half of the steps / {RIVAL}{kind}",
            (f"{STACK}{kind}", f"{ours.title((0, 1))}{kind}", f"{RIVAL}{kind}"),
            drawing,
            0.4,
        )
        for kind in ("", ", compiled")
    ]
    entries = both(ours, setting) + both(rival, setting)
    entries += stock(ours, setting)
    return Case(f"sampling, {IMAGES} latents of 32x32", device, BF16, entries, bounds)


def stock(stack: Contender, setting: Setting) -> list[Candidate]:
    """The DiT of diffusers beside a stack, where that is installed."""
    rival = diffusers(stack.name, stack.spec, setting.size) if find_spec("diffusers") else None
    return candidates(rival, setting) if rival else []


def both(stack: Contender, setting: Setting) -> list[Candidate]:
    """A stack and its parts, as they are and compiled."""
    network = fresh(stack)
    assert isinstance(network, LegoStack)
    as_is = candidates(replace(stack, network=network), setting)
    shape = (setting.batch, stack.spec.channels, *setting.size)
    noisy = torch.randn(shape, device=setting.device)
    sigma = torch.ones(setting.batch, device=setting.device)
    labels = torch.zeros(setting.batch, dtype=torch.int64, device=setting.device)
    graphs = CompiledStack(network.to(setting.device).lower(setting.precision))

    def run(bricks: tuple[int, ...] | None) -> None:
        with torch.no_grad():
            graphs(noisy, sigma, labels, bricks)

    parts = zip(as_is, (None, *stack.parts), strict=True)
    return as_is + [
        replace(one, name=f"{one.name}, compiled", run=partial(run, bricks), followed=False)
        for one, bricks in parts
    ]


def lone_image(device: torch.device) -> Case:
    """A guided image on its own: as it comes, compiled, and as CUDA graphs."""
    spec = preset(STACK, channels=4, classes=1000)
    stack = fresh(of_stack(STACK, spec))
    assert isinstance(stack, LegoStack)
    stack.to(device).lower(BF16)
    noisy, sigma = torch.randn(1, 4, 32, 32, device=device), torch.ones(1, device=device)
    labels = torch.zeros(1, dtype=torch.int64, device=device)

    def run(denoise: Callable[..., Tensor]) -> None:
        with torch.no_grad():
            guided(denoise, 1.5, no_class=1000)(noisy, sigma, labels)

    ways: dict[str, Callable[..., Tensor]] = {
        "eager": stack,
        "compiled": CompiledStack(stack),
        "CUDA graphs": CompiledStack(stack, mode="reduce-overhead"),
    }
    entries = [timed(name, partial(run, way), 1) for name, way in ways.items()]
    bounds = [time("eager", name, 3.0, least=True) for name in ("compiled", "CUDA graphs")]
    return Case("one image with guidance", device, BF16, entries, bounds)


def training(name: str, device: torch.device, authors: Path | None) -> Case:
    """Steps on all patches and on half of them, beside a DiT and the authors'."""
    spec = PRESETS[name]
    stack = replace(of_stack(name, spec), parts=())
    plain = dit(name, spec, spec.image_size)
    assert plain is not None
    setting = Setting(spec.image_size, IMAGES, device, BF16, train=True)
    half = candidates(stack, replace(setting, patches=0.5))[0]
    entries = [
        *candidates(stack, setting),
        replace(half, name=f"{name}, half of the patches"),
        compiled(stack, setting),
        candidates(plain, setting)[0],
        compiled(plain, setting),
        *stock(stack, setting),
    ]
    if authors is not None:
        entries += candidates(beside_authors(stack, authors)[1], setting)
    return Case(f"training step of {IMAGES} images, {name}", device, BF16, entries)
