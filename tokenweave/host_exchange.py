"""Rows that go between hosts along a rail: how they lie in memory, and the exchanges of them."""

import zlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
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


def exchange(hosts: Hosts, out: Pieces, own: Pieces) -> None:
    """Send own.of_host[h] to every other host h, take in out.of_host[h]."""
    if len(own.others) + len(out.others) > 0:
        hosts.wait(
            hosts.rail.exchange(as_bytes(out.others), as_bytes(own.others), out.counts, own.counts)
        )


def send_to_each(hosts: Hosts, out: Pieces, own: Tensor) -> None:
    """Send `own` to every other host, take in out.of_host[h]; this host's becomes `own` itself."""
    me, num_hosts = hosts.layout.host_idx, hosts.layout.num_hosts
    copies = Pieces(hosts, "copies", [len(own)] * num_hosts, own.shape[1:], own.dtype)
    if num_hosts == 2:
        copies.others = own
    else:
        for host_idx in range(num_hosts):
            if host_idx != me:
                copies.of_host[host_idx].copy_(own)
    exchange(hosts, out, copies)
    out.of_host[me] = own


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
