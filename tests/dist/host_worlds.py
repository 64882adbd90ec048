"""Worlds on several hosts, played by one machine: ranks with different host ids share no memory."""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass

import torch.distributed as dist

from tokenfabric.world import World


@dataclass(frozen=True, slots=True)
class Hosts:
    """So many hosts of so many ranks."""

    num_hosts: int
    local_size: int

    def __str__(self) -> str:
        return f"{self.num_hosts}x{self.local_size}"

    @property
    def size(self) -> int:
        return self.num_hosts * self.local_size

    @contextlib.contextmanager
    def world(self, rank: int, *, timeout_s: float = 20.0) -> Iterator[World]:
        """Open a world on the default process group as rank `rank` sees it."""
        os.environ["TOKENFABRIC_HOST_ID"] = f"host {rank // self.local_size}"
        assert dist.group.WORLD is not None
        with World.from_group(dist.group.WORLD, timeout_s=timeout_s, num_threads=1) as world:
            yield world
