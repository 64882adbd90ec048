"""Finished rows on their way from one rank of a host to all: read where they were written."""

import ctypes
from collections.abc import Sequence
from itertools import accumulate
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tokenfabric.hosts import Hosts
from tokenweave.host_plan import HierarchicalPlan
from tokenweave.native_call import address

if TYPE_CHECKING:
    from tokenfabric.world import World


class HostResults:
    """Results of one reduction, `num_results` tensors, in memory that a host's ranks share.

    A rank has the rows of its rail: block by block, its own host's block last, as `Pieces` lie.
    """

    def __init__(
        self, hosts: Hosts, plan: HierarchicalPlan, dtype: torch.dtype, num_results: int
    ) -> None:
        """Take the memory. Collective over the host, inside `Hosts.collective`."""
        self._plan, self._layout = plan, hosts.layout
        # Local rank 0 has the most rows, as split_rows deals them.
        most_rows = sum(stop - start for start, stop in plan.rail_rows(0))
        shape = (num_results, most_rows, plan.hidden)
        self._itemsize = dtype.itemsize
        self._of_rank = hosts.shared("results", shape, dtype)
        self.own = self._of_rank[hosts.layout.local_rank]
        """[results, rows, hidden] that this rank fills."""

    @property
    def from_others(self) -> Tensor:
        """[rows, hidden] of the first result: what the rail's ranks on other hosts send."""
        return self.own[0, : self._offsets(self._layout.local_rank)[self._layout.host_idx]]

    @property
    def of_own_host(self) -> Tensor:
        """[rows, hidden] of the first result: what this rank gives them."""
        at = self._offsets(self._layout.local_rank)[self._layout.host_idx]
        start, stop = self._plan.rail_rows(self._layout.local_rank)[self._layout.host_idx]
        return self.own[0, at : at + stop - start]

    def source(self, local_rank: int, block: int) -> int:
        """Return where a rank of this host has the rows of a block of the first result."""
        at = self._offsets(local_rank)[block] * self._plan.hidden * self._itemsize
        return address(self._of_rank[local_rank]) + at

    def rows(self, block: int) -> list[Tensor]:
        """Return where this rank's rows of a block go, one tensor per result."""
        at = self._offsets(self._layout.local_rank)[block]
        return [result[at:] for result in self.own]

    def copy_to(self, world: "World", targets: Sequence[int], row_bytes: int) -> None:
        """Copy all ranks' rows to where each result goes, when all ranks have written theirs.

        Args:
            world: whose host.
            targets: addresses of [tokens, hidden], by result.
            row_bytes: bytes of a row.
        """
        if self._layout.local_size > 1:
            world.host_comm.barrier()
        for local_rank, results in enumerate(self._of_rank):
            offsets = self._offsets(local_rank)
            for (start, stop), at in zip(self._plan.rail_rows(local_rank), offsets, strict=True):
                num_bytes = (stop - start) * row_bytes
                for result, target in zip(results, targets, strict=True):
                    source = address(result) + at * row_bytes
                    ctypes.memmove(target + start * row_bytes, source, num_bytes)

    def _offsets(self, local_rank: int) -> list[int]:
        """Return the row at which each block of a rank's results starts."""
        counts = [stop - start for start, stop in self._plan.rail_rows(local_rank)]
        if len(counts) == 1:
            return [0]
        me = self._layout.host_idx
        order = [block for block in range(len(counts)) if block != me] + [me]
        starts = accumulate((counts[block] for block in order), initial=0)
        return [start for _, start in sorted(zip(order, starts, strict=False))]
