"""Training on several processes, as torchrun starts them; one process needs nothing of this.

Two ways to share a network: DDP keeps a copy on every process, FSDP2 (``fully_shard``) a part.
"""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.nn.parallel import DistributedDataParallel

from legodiff.model.stack import LegoStack

TIMEOUT = timedelta(minutes=30)


@dataclass(frozen=True)
class World:
    """The processes of a run, as one of them sees it."""

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def leads(self) -> bool:
        """Whether this process speaks for all, and writes what is written once."""
        return self.rank == 0

    def gather(self, value: Any) -> list[Any]:
        """The values of all processes, by rank."""
        if self.size == 1:
            return [value]
        values = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def share(self, value: Any) -> Any:
        """The value of the first process."""
        values = [value]
        if self.size > 1:
            dist.broadcast_object_list(values, src=0)
        return values[0]

    def mean(self, values: Tensor) -> Tensor:
        """The mean over the processes."""
        if self.size > 1:
            values = values.clone()
            dist.all_reduce(values)
            values /= self.size
        return values

    def any(self, flag: bool) -> bool:
        """Whether it is so on any process."""
        if self.size == 1:
            return flag
        votes = torch.tensor(int(flag), device=self.device)
        dist.all_reduce(votes, op=dist.ReduceOp.MAX)
        return bool(votes)

    def describe(self) -> str:
        """One line: how many processes, where, on what."""
        places = self.gather((socket.gethostname(), str(self.device)))
        if self.size == 1:
            return f"1 process on {self.device}"
        by_host: dict[str, list[str]] = {}
        for host, device in places:
            by_host.setdefault(host, []).append(device)
        hosts = "; ".join(f"{host} ({', '.join(devices)})" for host, devices in by_host.items())
        return f"{self.size} processes on {len(by_host)} host(s): {hosts}"


@contextmanager
def joined(device: torch.device, expect: int | None = None) -> Iterator[World]:
    """The world of this process: all that torchrun started, or this one alone.

    Raises ValueError if there are not as many processes as expected.
    """
    size, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    if expect is not None and expect != size:
        raise ValueError(
            f"{expect} processes were expected and {size} were started; check how torchrun is "
            "called on each node (--nnodes, --nproc-per-node, --rdzv-endpoint)"
        )
    if size == 1:
        yield World(device=device)
        return
    if device.type == "mps":
        raise ValueError("several processes cannot share one mps device; use --device cpu")
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=TIMEOUT
    )
    try:
        yield World(rank, size, device)
    finally:
        dist.destroy_process_group()


def shard(network: LegoStack, world: World) -> None:
    """Spreads a network over the processes, block by block (FSDP2)."""
    mesh = init_device_mesh(world.device.type, (world.size,))  # else torch takes GPUs it finds
    for brick in network.bricks:
        for block in getattr(brick, "blocks", []):
            fully_shard(block, mesh=mesh)
    fully_shard(network, mesh=mesh)
    register_fsdp_forward_method(network, "estimates")


def replicate(objective: nn.Module, world: World, partial: bool) -> nn.Module:
    """The objective with its gradients averaged over the processes (DDP).

    ``partial``: not every parameter takes part in every step.
    """
    return DistributedDataParallel(
        objective,
        device_ids=[world.device] if world.device.type == "cuda" else None,
        find_unused_parameters=partial,
        gradient_as_bucket_view=True,
    )


@contextmanager
def synchronized(objective: nn.Module, network: LegoStack, last: bool) -> Iterator[None]:
    """Gradients are exchanged in the last pass of a step only."""
    if isinstance(network, FSDPModule):
        network.set_requires_gradient_sync(last)
        yield
    elif isinstance(objective, DistributedDataParallel) and not last:
        with objective.no_sync():
            yield
    else:
        yield


def plain(tensor: Tensor) -> Tensor:
    """A tensor in one piece, on every process."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
