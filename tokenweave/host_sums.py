"""A reduction over several hosts whose fp32 sums travel: see "sums" in host_plan.py."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tokenfabric.hosts import Hosts
from tokenweave.host_exchange import Pieces, exchange, send_to_each
from tokenweave.host_native import Addresses, Finish, UnroundedReduceScatter
from tokenweave.host_plan import HierarchicalPlan
from tokenweave.host_results import HostResults
from tokenweave.native_call import address

if TYPE_CHECKING:
    from tokenfabric.world import World


class SumsTravel:
    """One shape, settled. Calling it is collective, inside `Hosts.collective`."""

    def __init__(self, world: "World", plan: HierarchicalPlan, dtype: torch.dtype) -> None:
        """Settle the sums inside the host. ConfigError: a row does not fit into the staging."""
        layout = world.layout
        self._plan, self._dtype = plan, dtype
        self._row_bytes = plan.hidden * dtype.itemsize
        self._rail_rows = plan.rail_rows(layout.local_rank)
        added_rows = plan.added_rows(layout.rank)
        self._num_added = added_rows[1] - added_rows[0]
        self._reduce_inside = [
            UnroundedReduceScatter(world, stop - start, plan.hidden, dtype)
            for start, stop in plan.blocks
        ]

    def __call__(
        self, world: "World", hosts: Hosts, finish: Finish, x: Tensor, where: Addresses
    ) -> None:
        """Reduce `x` over the world, to what `finish` makes of the sums, at `where`."""
        plan = self._plan
        is_sharded = plan.residual_layout == "row_sharded"
        num_results = 1 if not where.residual_out or is_sharded else 2
        if plan.output == "own_rows":
            self._finish(world, finish, self._sums_of_host(world, hosts, x), out=where.out)
            return
        # Before any rank waits for another host: one that hears of a death there would leave the
        # others of its own waiting for it, in an allocation that hears of nothing.
        results = HostResults(hosts, plan, self._dtype, num_results)
        sums = self._sums_of_host(world, hosts, x)
        if plan.finishes_once:
            pieces = self._pieces(hosts, "", results.own[0])
            own = pieces.of_host[hosts.layout.host_idx]
            self._finish(
                world, finish, sums,
                out=address(own), residual=where.residual, residual_out=where.residual_out,
            )  # fmt: skip
            send_to_each(hosts, pieces, own)
        else:
            sums_of_block = [sums]
            if plan.exchange == "scatter":
                pieces = self._pieces(hosts, "rounded")
                own = pieces.of_host[hosts.layout.host_idx]
                self._finish(world, finish.only_adds(), sums, out=address(own))
                send_to_each(hosts, pieces, own)
                sums_of_block = [[rows] for rows in pieces.of_host]
            for block, (start, _) in enumerate(self._rail_rows):
                at = start * self._row_bytes
                out, *rest = results.rows(block)
                self._finish(
                    world, finish, sums_of_block[block],
                    out=address(out),
                    residual=where.residual + at if where.residual else 0,
                    residual_out=address(rest[0]) if rest else 0,
                )  # fmt: skip
        results.copy_to(world, [where.out, where.residual_out][:num_results], self._row_bytes)

    def _finish(self, world: "World", finish: Finish, sums: Sequence[Tensor], **where: int) -> None:
        finish(world, [address(rows) for rows in sums], len(sums[0]), sums[0].dtype, **where)

    def _sums_of_host(self, world: "World", hosts: Hosts, x: Tensor) -> list[Tensor]:
        """Return all hosts' fp32 sums of the rows that this rank adds, in host order."""
        plan = self._plan
        if plan.exchange == "gather":
            own = hosts.scratch("sums", (self._num_added, plan.hidden), torch.float32)
            self._add_inside(world, x, [own])
            counts = [self._num_added] * plan.num_hosts
            received = Pieces(hosts, "received", counts, (plan.hidden,), torch.float32)
            send_to_each(hosts, received, own)
            return received.of_host
        counts = [stop - start for start, stop in self._rail_rows]
        sums = Pieces(hosts, "sums", counts, (plan.hidden,), torch.float32)
        self._add_inside(world, x, sums.of_host)
        counts = [self._num_added] * plan.num_hosts
        received = Pieces(hosts, "received", counts, (plan.hidden,), torch.float32)
        exchange(hosts, received, sums)
        received.of_host[hosts.layout.host_idx] = sums.of_host[hosts.layout.host_idx]
        return received.of_host

    def _add_inside(self, world: "World", x: Tensor, sums: Sequence[Tensor]) -> None:
        """Add the partial sums of this host's ranks, block by block."""
        for (start, stop), reduce, out in zip(
            self._plan.blocks, self._reduce_inside, sums, strict=True
        ):
            if stop > start:
                reduce(world, address(x) + start * self._row_bytes, address(out))

    def _pieces(self, hosts: Hosts, name: str, memory: Tensor | None = None) -> Pieces:
        """Return memory for results of this rank's rail, by block, each a host's to fill."""
        counts = [stop - start for start, stop in self._rail_rows]
        return Pieces(hosts, name, counts, (self._plan.hidden,), self._dtype, memory)
