"""Rows that go between hosts along a rail: how they lie in memory, and the exchanges of them."""

import zlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor

from tokenfabric.hosts import Call, Hosts
from tokenweave.native_call import NATIVE_DTYPE

if TYPE_CHECKING:
    from tokenfabric.world import World

# token::DType::kBytes: data that is only moved.
_BYTES = 2


class Pieces:
    """Rows by host in one memory: those of the other hosts in order, behind them this host's."""

    def __init__(
        self, hosts: Hosts, name: str, counts: Sequence[int], row_shape: tuple[int, ...],
        dtype: torch.dtype, memory: Tensor | None = None,
    ) -> None:  # fmt: skip
        """Take scratch memory, uninitialised, or `memory`, for counts[h] rows of host h."""
        me = hosts.layout.host_idx
        self.counts = [0 if host_idx == me else count for host_idx, count in enumerate(counts)]
        if memory is None:
            memory = hosts.scratch(name, (sum(counts), *row_shape), dtype)
        self.others = memory[: sum(self.counts)]
        """[sum(counts), ...]: the rows of the other hosts."""
        self.of_host = list(self.others.split(self.counts))
        self.of_host[me] = memory[sum(self.counts) : sum(counts)]


def start_exchange(
    hosts: Hosts, out: Tensor, own: Tensor, out_rows: Sequence[int], own_rows: Sequence[int]
) -> dist.Work | None:
    """Begin to send the next own_rows[h] rows of `own` to every other host h, and to take in
    out_rows[h] of it; see `Rail.exchange`.

    Returns:
        What `Hosts.wait` waits for; None where nothing moves, which is so for the whole rail.
    """
    if len(own) + len(out) == 0:
        return None
    return hosts.rail.exchange(as_bytes(out), as_bytes(own), out_rows, own_rows)


def exchange(hosts: Hosts, out: Pieces, own: Pieces) -> None:
    """Send own.of_host[h] to every other host h, take in out.of_host[h]."""
    hosts.wait(start_exchange(hosts, out.others, own.others, out.counts, own.counts))


def start_send_to_each(
    hosts: Hosts, out: Tensor, out_rows: Sequence[int], own: Tensor
) -> dist.Work | None:
    """Begin to send all of `own` to every other host; the rest as for `start_exchange`."""
    me, num_hosts = hosts.layout.host_idx, hosts.layout.num_hosts
    own_rows = [0 if host_idx == me else len(own) for host_idx in range(num_hosts)]
    copies = own
    if num_hosts > 2:
        copies = hosts.scratch("copies", (sum(own_rows), *own.shape[1:]), own.dtype)
        for copy in copies.split(own_rows):
            copy.copy_(own[: len(copy)])
    return start_exchange(hosts, out, copies, out_rows, own_rows)


def send_to_each(hosts: Hosts, out: Pieces, own: Tensor) -> None:
    """Send `own` to every other host, take in out.of_host[h]; this host's becomes `own` itself."""
    hosts.wait(start_send_to_each(hosts, out.others, out.counts, own))
    out.of_host[hosts.layout.host_idx] = own


def hosts_of(world: "World") -> Hosts:
    """Return what an open world on several hosts has besides. ConfigError: it is closed."""
    assert world.host_comm is not None
    assert world.hosts is not None
    return world.hosts


def call_of(
    operation: int, dtype: torch.dtype, rows: int, row_elems: int, *options: object
) -> Call:
    """Return the record of a call; the options count by their text."""
    what = (dtype, row_elems, options)
    return Call(
        operation,
        NATIVE_DTYPE.get(dtype, _BYTES),
        rows,
        row_elems & 0xFFFFFFFF,  # the rows of a gather can be longer than the field
        zlib.crc32(repr(what).encode()),
    )


def as_bytes(x: Tensor) -> Tensor:
    """Return a view of a contiguous tensor, its last dimension in bytes."""
    return (x if x.dim() else x.view(1)).view(torch.uint8)
