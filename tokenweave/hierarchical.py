"""Reductions over several hosts: shared memory inside each, torch.distributed between them.

What is done is decided in host_plan.py. What happens in shared memory is in host_native.py, between
hosts in host_exchange.py. All ranks of all hosts agree on the call first (tokenfabric/hosts.py).
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tokenfabric.hosts import Hosts
from tokenweave.host_exchange import Pieces, call_of, exchange, hosts_of, send_to_each
from tokenweave.host_native import Finish, UnroundedReduceScatter
from tokenweave.host_plan import HierarchicalPlan
from tokenweave.host_results import HostResults
from tokenweave.native_call import address

if TYPE_CHECKING:
    from tokenfabric.world import World


class HierarchicalReduction:
    """A planned reduction of one shape over several hosts; called as a PreparedReduction is.

    Calling it is collective, with tensors that the caller has checked.
    """

    def __init__(
        self,
        world: "World",
        plan: HierarchicalPlan,
        operation: int,
        *,
        dtype: torch.dtype,
        weight_dtype: torch.dtype | None = None,
    ) -> None:
        """Settle the call.

        Args:
            world: on several hosts.
            plan: how it is done.
            operation: native.weave.OP_*, what the user called.
            dtype: of the partial sums.
            weight_dtype: of the norm; default: dtype.
        """
        layout = world.layout
        self._plan, self._operation, self._dtype = plan, operation, dtype
        self._weight_dtype = weight_dtype or dtype
        self._row_bytes = plan.hidden * dtype.itemsize
        self._rail_rows = plan.rail_rows(layout.local_rank)
        self._added_rows = plan.added_rows(layout.rank)
        self._num_added = self._added_rows[1] - self._added_rows[0]
        self._reduce_inside = [
            UnroundedReduceScatter(world, stop - start, plan.hidden, dtype)
            for start, stop in plan.blocks
        ]

    def __call__(
        self,
        world: "World",
        x: Tensor,
        residual: Tensor | None,
        bias: Tensor | None,
        weight: Tensor | None,
        out_address: int,
        residual_out: Tensor | None,
        eps: float,
        weight_offset: float,
        norm_bias: Tensor | None = None,
    ) -> None:
        """Reduce on `world`. See `tokenweave.allreduce_rmsnorm` for what each tensor is."""
        assert norm_bias is None, "LayerNorm is refused when a call over several hosts is prepared"
        plan, hosts = self._plan, hosts_of(world)
        is_absent = [tensor is None for tensor in (residual, residual_out, bias, weight)]
        options = (plan.output, plan.residual_layout, is_absent, self._weight_dtype, eps,
                   weight_offset)  # fmt: skip
        add = Finish(hidden=plan.hidden, dtype=self._dtype, weight_dtype=self._weight_dtype)
        finish = replace(add, bias=bias, weight=weight, eps=eps, weight_offset=weight_offset)
        call = call_of(self._operation, self._dtype, plan.num_tokens, plan.hidden, *options)
        is_sharded = plan.residual_layout == "row_sharded"
        num_results = 1 if residual_out is None or is_sharded else 2
        with hosts.collective(call):
            sums = self._sums_of_host(world, hosts, x)
            if plan.output == "own_rows":
                finish(world, sums, out_address)
                return
            results = HostResults(hosts, plan, self._dtype, num_results)
            if plan.finishes_once:
                pieces = self._pieces(hosts, "", results.own[0])
                own = pieces.of_host[hosts.layout.host_idx]
                finish(world, sums, address(own), address(residual), address(residual_out))
                send_to_each(hosts, pieces, own)
            else:
                sums_of_block = [sums]
                if plan.exchange == "scatter":
                    pieces = self._pieces(hosts, "rounded")
                    own = pieces.of_host[hosts.layout.host_idx]
                    add(world, sums, address(own))
                    send_to_each(hosts, pieces, own)
                    sums_of_block = [[rows] for rows in self._in_fp32(hosts, pieces.of_host)]
                for block, (start, _) in enumerate(self._rail_rows):
                    at = start * self._row_bytes
                    out, *rest = results.rows(block)
                    finish(
                        world,
                        sums_of_block[block],
                        address(out),
                        address(residual) + at if residual is not None else 0,
                        address(rest[0]) if rest else 0,
                    )
            targets = [out_address, address(residual_out)][:num_results]
            results.copy_to(world, targets, self._row_bytes)

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

    def _in_fp32(self, hosts: Hosts, rounded: list[Tensor]) -> list[Tensor]:
        """Return rounded sums in the dtype that `Finish` reads."""
        if self._dtype is torch.float32:
            return rounded
        counts = [len(rows) for rows in rounded]
        wide = Pieces(hosts, "wide", counts, (self._plan.hidden,), torch.float32).of_host
        for rows, target in zip(rounded, wide, strict=True):
            target.copy_(rows)
        return wide
