"""A reduction over several hosts whose partial sums travel: see "partials" in host_plan.py.

They arrive in memory that the ranks of the host have mapped, so that a rank adds all ranks' rows
where they lie, by the kernel that does so on one host. Results that travel as well are taken out of
this host's memory, or finished from it, while those of the other hosts are on their way.
"""

import ctypes
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tokenfabric.hosts import Hosts
from tokenfabric.topology import HostLayout
from tokenweave.host_exchange import start_exchange, start_send_to_each
from tokenweave.host_native import Addresses, Finish
from tokenweave.host_plan import HierarchicalPlan
from tokenweave.host_results import HostResults
from tokenweave.native_call import address
from tokenweave.plan import split_rows

if TYPE_CHECKING:
    from tokenfabric.world import World


class PartialsTravel:
    """One shape, settled. Calling it is collective, inside `Hosts.collective`."""

    def __init__(self, layout: HostLayout, plan: HierarchicalPlan, dtype: torch.dtype) -> None:
        """Settle who sends, adds and finishes which rows."""
        self._layout, self._plan, self._dtype = layout, plan, dtype
        self._row_bytes = plan.hidden * dtype.itemsize
        self._shares = split_rows(plan.num_tokens, layout.size)
        self._own_rows = plan.added_rows(layout.rank)
        me = layout.host_idx
        self._block = plan.blocks[0 if plan.exchange == "gather" else me]
        """Rows that the ranks of this host add."""
        self._num_rows = self._block[1] - self._block[0]
        self._others = [host_idx for host_idx in range(plan.num_hosts) if host_idx != me]

    def __call__(
        self, world: "World", hosts: Hosts, finish: Finish, x: Tensor, where: Addresses
    ) -> None:
        """Reduce `x` over the world, to what `finish` makes of the sums, at `where`."""
        plan = self._plan
        inputs = self._partials(hosts, x.view(plan.num_tokens, plan.hidden))
        if plan.exchange == "gather" or plan.output == "own_rows":
            self._finish(world, finish, inputs, self._own_rows, where)
            return
        # Here no rank of this host waits for another host: see host_sums.py.
        results = HostResults(hosts, plan, self._dtype, 1)
        received, own = results.from_others, results.of_own_host
        counts = [
            0 if host_idx == self._layout.host_idx else stop - start
            for host_idx, (start, stop) in enumerate(plan.rail_rows(self._layout.local_rank))
        ]
        if plan.finishes_once:
            self._finish(world, finish, inputs, self._own_rows, where, out_copy=address(own))
        else:
            finish.only_adds()(world, inputs, len(own), self._dtype, out=address(own))
        work = start_send_to_each(hosts, received, counts, own)
        self._meet(hosts)
        self._take(world, finish, results, [self._layout.host_idx], where)
        hosts.wait(work)
        self._meet(hosts)
        self._take(world, finish, results, self._others, where)

    def _partials(self, hosts: Hosts, x: Tensor) -> list[int]:
        """Return where all ranks' partial sums of the rows that this rank adds begin, in order."""
        plan, layout, num_rows = self._plan, self._layout, self._num_rows
        shape = (plan.num_hosts * num_rows, plan.hidden)
        of_rank = hosts.shared("partials", shape, self._dtype)
        memory = of_rank[layout.local_rank]
        arriving = memory[: len(self._others) * num_rows]
        counts = [num_rows if host_idx in self._others else 0 for host_idx in range(plan.num_hosts)]
        if plan.exchange == "gather":
            work = start_send_to_each(hosts, arriving, counts, x)
        else:
            sizes = [stop - start for start, stop in plan.blocks]
            sizes[layout.host_idx] = 0
            work = start_exchange(hosts, arriving, self._rows_of_others(hosts, x), counts, sizes)
        first, last = self._block
        start, stop = self._own_rows
        if layout.local_size > 1:
            staged = address(memory) + len(self._others) * num_rows * self._row_bytes
            is_own = plan.exchange == "scatter"  # what this rank adds itself nobody else reads
            for begin, end in ((first, start), (stop, last)) if is_own else ((first, last),):
                ctypes.memmove(
                    staged + (begin - first) * self._row_bytes,
                    address(x) + begin * self._row_bytes,
                    (end - begin) * self._row_bytes,
                )
        hosts.wait(work)
        self._meet(hosts)
        slot = {host_idx: at for at, host_idx in enumerate((*self._others, layout.host_idx))}
        inputs = [
            address(memory) + (slot[host_idx] * num_rows + start - first) * self._row_bytes
            for host_idx in range(plan.num_hosts)
            for memory in of_rank
        ]
        inputs[layout.rank] = address(x) + start * self._row_bytes
        return inputs

    def _rows_of_others(self, hosts: Hosts, x: Tensor) -> Tensor:
        """Return the rows that the other hosts add, in one piece."""
        first, last = self._block
        if first == 0:
            return x[last:]
        if last == len(x):
            return x[:first]
        rows = hosts.scratch("rows", (len(x) - self._num_rows, self._plan.hidden), self._dtype)
        return torch.cat((x[:first], x[last:]), out=rows)

    def _take(
        self,
        world: "World",
        finish: Finish,
        results: HostResults,
        host_idxs: Sequence[int],
        where: Addresses,
    ) -> None:
        """Put rows that ranks of these hosts have added where they go, or finish them there."""
        local_size = self._layout.local_size
        for host_idx in host_idxs:
            for local_rank in range(local_size):
                rank = host_idx * local_size + local_rank
                start, stop = self._shares[rank]
                source = results.source(local_rank, host_idx)
                if not self._plan.finishes_once:
                    self._finish(world, finish, [source], (start, stop), where)
                elif rank != self._layout.rank:
                    target = where.out + start * self._row_bytes
                    ctypes.memmove(target, source, (stop - start) * self._row_bytes)

    def _finish(
        self,
        world: "World",
        finish: Finish,
        inputs: Sequence[int],
        rows: tuple[int, int],
        where: Addresses,
        out_copy: int = 0,
    ) -> None:
        start, stop = rows
        at = start * self._row_bytes
        at_residual = 0 if self._plan.residual_layout == "row_sharded" else at
        finish(
            world,
            inputs,
            stop - start,
            self._dtype,
            out=where.out + (0 if self._plan.output == "own_rows" else at),
            out_copy=out_copy,
            residual=where.residual + at_residual if where.residual else 0,
            residual_out=where.residual_out + at_residual if where.residual_out else 0,
        )

    def _meet(self, hosts: Hosts) -> None:
        if self._layout.local_size > 1:
            hosts.comm.barrier()
