"""The ranks of a training run as dp x ring, and a model's parameters dealt over all of them."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import nn
from torch._C._distributed_c10d import HashStore
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from launch.training.collectives import put_on_clock
from launch.training.config import TrainConfig
from tokenfabric.comm_clock import CommClock
from tokenfabric.errors import ConfigError
from tokenfabric.world import World


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingMesh:
    """One rank's place."""

    world: World
    """All ranks."""
    ring: World
    """The ranks that share this rank's rows."""
    ranks: DeviceMesh
    """All ranks in one dimension: parameters are dealt over it."""
    dp: int
    dp_rank: int
    parameters_clock: CommClock = field(default_factory=CommClock)
    """How long this rank has been in the collectives over parameters and gradients."""

    def ring_seconds(self) -> float:
        """Return how long this rank has been in the ring's messages, and in sums over ranks."""
        clocks = {id(world): world.comm_clock for world in (self.world, self.ring)}
        return sum(clock.seconds for clock in clocks.values())


@contextmanager
def training_mesh(world: World, config: TrainConfig) -> Iterator[TrainingMesh]:
    """Lay the ranks out: those of a ring follow each other. Collective.

    Raises:
        ConfigError: the world has not dp x ring ranks.
    """
    if world.size != config.world_size:
        raise ConfigError(
            f"dp {config.dp} x ring {config.ring} is {config.world_size} ranks, but there are "
            f"{world.size}"
        )
    with _process_group(world):
        kind = world.device.type
        ranks = init_device_mesh(kind, (world.size,))
        ring = world
        if config.dp > 1:
            grid = init_device_mesh(kind, (config.dp, config.ring), mesh_dim_names=("dp", "ring"))
            ring = World.from_group(grid["ring"], timeout_s=world.timeout_s)
        try:
            yield TrainingMesh(
                world=world,
                ring=ring,
                ranks=ranks,
                dp=config.dp,
                dp_rank=world.rank // config.ring,
            )
        finally:
            if ring is not world:
                ring.close()


def deal_parameters(
    module: nn.Module, layers: nn.ModuleList, mesh: TrainingMesh, dtype: torch.dtype
) -> None:
    """Deal a module's fp32 parameters over the ranks (FSDP2). Collective.

    Each layer gathers its parameters when it needs them, in `dtype`; gradients are summed in fp32.
    With equal sums on all ranks the result is their mean: FSDP divides by the number of ranks.
    """
    policy = MixedPrecisionPolicy(
        param_dtype=None if dtype is torch.float32 else dtype, reduce_dtype=torch.float32
    )
    for part in (*layers, module):
        put_on_clock(fully_shard(part, mesh=mesh.ranks, mp_policy=policy), mesh.parameters_clock)


@contextmanager
def _process_group(world: World) -> Iterator[None]:
    """torch's sharding wants a default process group, which a rank alone has not."""
    if dist.is_initialized():
        yield
        return
    assert world.size == 1, "a world of several ranks has a process group"
    dist.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()
