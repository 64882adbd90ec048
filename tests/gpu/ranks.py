"""Several ranks on one GPU, each a process. They take turns: right, but milliseconds a barrier."""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

from tokenfabric.testing.spawn import run_ranks
from tokenfabric.world import World

# torch refuses two ranks on one GPU unless it is told that this is meant. Small slots.
_ENVIRONMENT = {
    "TORCH_SYMM_MEM_ALLOW_OVERLAPPING_DEVICES": "1",
    "TOKENFABRIC_CUDA_SLOT_MIB": "8",
}


def run_on_one_gpu(
    fn: Callable[..., Any],
    world_size: int,
    *args: Any,
    comm_timeout_s: float = 30.0,
    environment: dict[str, str] | None = None,
) -> list[Any]:
    """Run `fn(world, *args)` on ranks that share GPU 0 and return what each returned.

    Args:
        fn: a top-level function.
        comm_timeout_s: deadline of every wait on another rank.
        environment: set in the ranks besides what sharing a GPU needs.
    """
    return run_ranks(
        _on_gpu,
        world_size,
        fn,
        comm_timeout_s,
        args,
        with_world=False,
        timeout_s=110.0,
        comm_timeout_s=max(30.0, comm_timeout_s),
        environment=_ENVIRONMENT | (environment or {}),
    )


def _on_gpu(
    rank: int, world_size: int, fn: Callable[..., Any], timeout_s: float, args: tuple[Any, ...]
) -> Any:
    with World.from_group(
        dist.group.WORLD, timeout_s=timeout_s, device=torch.device("cuda", 0)
    ) as world:
        assert (world.rank, world.size) == (rank, world_size)
        return fn(world, *args)
