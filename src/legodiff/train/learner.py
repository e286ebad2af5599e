"""What learns: the network, its average, its optimizer, and the loss as one module."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.utils.checkpoint import checkpoint

from legodiff.codec import Codec
from legodiff.config import TrainConfig
from legodiff.diffusion.loss import brick_losses, drop_labels, fill_image
from legodiff.model.brick import LegoBrick
from legodiff.model.compiled import compile_blocks
from legodiff.model.spec import StackSpec
from legodiff.model.stack import LegoStack
from legodiff.train.distributed import World, replicate, shard
from legodiff.train.draws import draw
from legodiff.train.ema import Ema

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Losses(NamedTuple):
    """The loss of each brick that ran on each image, and the images' noise levels."""

    values: Tensor
    """(K, B), from the bottom brick to the top."""
    sigma: Tensor
    """(B,)"""


class Objective(nn.Module):
    """The training loss of given images of the run, as a module: what DDP wraps."""

    def __init__(
        self, network: LegoStack, codec: Codec, settings: TrainConfig, precision: torch.dtype
    ) -> None:
        super().__init__()
        self.network, self.codec, self.settings = network, codec, settings
        self.precision = precision

    def forward(
        self, images: Tensor, labels: Tensor, positions: range, bricks: Sequence[int]
    ) -> Losses:
        """
        Args:
            images: (B, C, H, W) as the data has them.
            labels: int64 (B,).
            positions: which images of the run these are; decides what chance decides.
            bricks: the bricks to run.
        """
        spec, settings = self.network.spec, self.settings
        clean = self.codec.encode(images)
        chance = draw(positions, settings.seed, spec, settings, clean.device)
        if spec.classes:
            labels = drop_labels(labels, spec.classes, settings.label_dropout, chance.uniform)
        with torch.autocast(
            clean.device.type, self.precision, enabled=self.precision != torch.float32
        ):
            values = brick_losses(
                self.network,
                clean,
                chance.noise,
                chance.sigma,
                labels if spec.classes else None,
                bricks=bricks,
                samples=chance.samples,
                fill=fill_image(settings.fill, clean, chance.fill, spec.sigma_data),
                detach=settings.detach,
            )
        return Losses(values, chance.sigma)


@dataclass
class Learner:
    """Everything that changes while training."""

    network: LegoStack
    ema: Ema
    optimizer: torch.optim.AdamW
    scaler: torch.amp.GradScaler
    objective: nn.Module
    """An ``Objective``, wrapped for several processes."""
    average: Objective
    """The same loss for the average."""

    @property
    def sharded(self) -> bool:
        """Whether every process has only a part of each tensor."""
        return isinstance(self.network, FSDPModule)

    @property
    def trained(self) -> list[nn.Parameter]:
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor by name: "raw/...", "ema/..." and "optimizer/NAME/exp_avg"."""
        named = {f"raw/{name}": tensor for name, tensor in self.network.state_dict().items()}
        named |= {f"ema/{name}": tensor for name, tensor in self.ema.network.state_dict().items()}
        for name, parameter in self.network.named_parameters():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                named[f"optimizer/{name}/{key}"] = value
        return named


def replicated(learner: Learner, settings: TrainConfig, world: World) -> Learner:
    """The learner with its gradients averaged over the processes, where that is for DDP to do.

    From then on the objective must only be run through its wrapper.
    """
    if world.size > 1 and not learner.sharded:
        partial_use = settings.brick_dropout > 0
        learner.objective = replicate(learner.objective, world, partial_use)
    return learner


def unwrapped(learner: Learner) -> Objective:
    """The objective without what wraps it for several processes."""
    inner = getattr(learner.objective, "module", learner.objective)
    assert isinstance(inner, Objective)
    return inner


def build_network(spec: StackSpec, seed: int) -> LegoStack:
    """A fresh network, drawn from a seed without touching the global generator."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LegoStack(spec)


def build_learner(network: LegoStack, codec: Codec, settings: TrainConfig, world: World) -> Learner:
    """Makes a network on the CPU ready to learn; ``replicated`` then joins the processes."""
    freeze(network, settings.bricks)
    network.to(world.device)
    ema = Ema(network, settings.ema_halflife_images, settings.ema_rampup)
    sharded = settings.parallel == "fsdp" and world.size > 1
    if settings.recompute:
        recompute(network)
    if settings.compile:
        compile_blocks(network)
    if sharded:
        shard(network, world)
        shard(ema.network, world)
    optimizer = torch.optim.AdamW(
        parameter_groups(network, settings),
        lr=settings.learning_rate,
        betas=settings.betas,
        weight_decay=settings.weight_decay,
        fused=True,
    )
    begin_moments(optimizer)
    precision = choose_precision(settings.precision, world.device)
    return Learner(
        network,
        ema,
        optimizer,
        torch.amp.GradScaler(world.device.type, enabled=precision == torch.float16),
        Objective(network, codec, settings, precision),
        Objective(ema.network, codec, settings, precision),
    )


def freeze(network: LegoStack, bricks: Sequence[int] | None) -> None:
    """Leaves only some bricks to learn; what they share learns with the lowest that reads it."""
    reader = lowest_own(network)
    shared = reader is not None and (bricks is None or reader in bricks)
    network.noise_embedding.requires_grad_(shared)
    if network.class_embedding is not None:
        network.class_embedding.requires_grad_(shared)
    if bricks is not None:
        for number, brick in enumerate(network.bricks):
            brick.requires_grad_(number in bricks)


def lowest_own(network: LegoStack) -> int | None:
    """The lowest brick that is of ours, which reads the embeddings that all share."""
    return next((n for n, b in enumerate(network.bricks) if isinstance(b, LegoBrick)), None)


def parameter_groups(network: LegoStack, settings: TrainConfig) -> list[dict[str, Any]]:
    """All that learns; with ``brick_rates``, a group a brick with the factor of its rate."""
    learning = [p for p in network.parameters() if p.requires_grad]
    if not settings.brick_rates:
        return [{"params": learning, "factor": 1.0}]
    if len(settings.brick_rates) != len(network.bricks):
        raise ValueError(
            f"train.brick_rates has {len(settings.brick_rates)} factors for "
            f"{len(network.bricks)} bricks; give one for each"
        )
    own = [list(brick.parameters()) for brick in network.bricks]
    inside = {id(parameter) for group in own for parameter in group}
    if (reader := lowest_own(network)) is not None:
        own[reader] += [p for p in learning if id(p) not in inside]
    return [
        {"params": group, "factor": factor}
        for group, factor in zip(own, settings.brick_rates, strict=True)
    ]


def recompute(network: LegoStack) -> None:
    """Keeps no activations inside the blocks; the backward pass computes them again."""
    for brick in network.bricks:
        for block in getattr(brick, "blocks", []):
            block.forward = recomputed(block.forward)


def recomputed(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The same, keeping its inputs only. A function: ``torch.compile`` skips other callables."""

    def again(*inputs: Tensor) -> Tensor:
        out: Tensor = checkpoint(forward, *inputs, use_reentrant=False, preserve_rng_state=False)
        return out

    return again


def begin_moments(optimizer: torch.optim.AdamW) -> None:
    """Gives every parameter its moments at once, so that a checkpoint always holds the same."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            optimizer.state[parameter] = {
                "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
                "exp_avg": torch.zeros_like(parameter, memory_format=torch.preserve_format),
                "exp_avg_sq": torch.zeros_like(parameter, memory_format=torch.preserve_format),
            }


def choose_precision(name: str, device: torch.device) -> torch.dtype:
    """The dtype of the network's products. Raises ValueError if the device has it not."""
    has_bf16 = device.type == "cpu" or (device.type == "cuda" and torch.cuda.is_bf16_supported())
    if name == "auto":
        return torch.bfloat16 if has_bf16 and device.type == "cuda" else torch.float32
    if name == "bf16" and not has_bf16:
        raise ValueError(f"train.precision is bf16, which {device} has not; use fp16 or fp32")
    return DTYPES[name]
