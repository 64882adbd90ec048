"""Ranks as ring x tp: those with the same tokens and different heads, and the other way round.

A tensor-parallel group is of ranks that follow each other, which lie on one node; a ring takes one
of each group.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from torch.distributed.device_mesh import init_device_mesh

from tokenfabric import World
from tokenfabric.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class RingOfGroups:
    """One rank's place."""

    world: World
    """All ranks."""
    tp: World
    """The ranks with this rank's tokens, each with some heads of the model."""
    ring: World
    """The ranks with this rank's heads, each with some tokens."""


@contextmanager
def ring_of_groups(world: World, tp: int) -> Iterator[RingOfGroups]:
    """Lay the ranks out as rings of tensor-parallel groups. Collective.

    Example: 4 ranks and tp 2 are the groups 0 1 and 2 3, and the rings 0 2 and 1 3.

    Args:
        world: tp ranks, times as many as share the tokens.
        tp: ranks of a group, at least 2.

    Raises:
        ConfigError: the ranks are no multiple of tp.
    """
    if tp < 2 or world.size % tp:
        raise ConfigError(
            f"tp is {tp}, but must be at least 2 and divide the {world.size} ranks: take another "
            "--tp or --ring"
        )
    grid = init_device_mesh(
        world.device.type, (world.size // tp, tp), mesh_dim_names=("ring", "tp")
    )
    with ExitStack() as stack:
        tp_world, ring = (
            stack.enter_context(
                World.from_group(
                    grid[axis], timeout_s=world.timeout_s, num_threads=world.num_threads
                )
            )
            for axis in ("tp", "ring")
        )
        yield RingOfGroups(world=world, tp=tp_world, ring=ring)
