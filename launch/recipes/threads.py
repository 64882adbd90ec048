"""More cores for some ranks while the others sleep."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from launch.job import threads_per_rank
from tokenfabric import World
from tokenfabric.cores import pin_process, read_cores
from tokenfabric.topology import usable_cores


@contextmanager
def all_cores(world: World, num_ranks: int = 1) -> Iterator[None]:
    """Let torch use the cores of all ranks of this host, which so many ranks share; then as before.

    A pinned rank leaves its own cores for the time.
    """
    threads, cores = torch.get_num_threads(), usable_cores()
    pin_process(host_cores(world))
    torch.set_num_threads(host_threads(world, num_ranks))
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        pin_process(cores)


def host_cores(world: World) -> tuple[int, ...]:
    """Return the cores on which the ranks of this host run, all together."""
    return tuple(sorted(set().union(*world.placement.cores_of_rank)))


def host_threads(world: World, num_ranks: int = 1) -> int:
    """Return how many threads of torch each of so many ranks has there: one a physical core."""
    physical = {core.physical for core in read_cores(indices=host_cores(world))}
    return threads_per_rank(len(physical), num_ranks)
