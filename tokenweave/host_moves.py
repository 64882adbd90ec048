"""Collectives over several hosts that reduce nothing: all-gather and broadcast."""

from itertools import accumulate
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tokenfabric import native
from tokenfabric.errors import ConfigError
from tokenweave.host_exchange import Pieces, as_bytes, call_of, hosts_of, send_to_each
from tokenweave.host_native import gather_inside
from tokenweave.native_call import address

if TYPE_CHECKING:
    from tokenfabric.world import World


def all_gather(world: "World", x: Tensor, out: Tensor, rows: int, column_bytes: list[int]) -> None:
    """Concatenate the ranks' columns: along the rails, then inside every host. Collective.

    Args:
        world: on several hosts.
        x: [rows, column_bytes[rank]] bytes, contiguous, of any dtype.
        out: [rows, sum(column_bytes)] bytes.
        rows: 1 for flat tensors.
        column_bytes: width of every rank.
    """
    hosts, layout = hosts_of(world), world.layout
    local_size = layout.local_size
    with hosts.collective(
        call_of(native.fabric.OP_ALL_GATHER, x.dtype, rows, sum(column_bytes), *column_bytes)
    ):
        sizes = [rows * column_bytes[rank] for rank in layout.rail_ranks]
        gathered = Pieces(hosts, "gathered", sizes, (), torch.uint8)
        send_to_each(hosts, gathered, as_bytes(x).view(-1))
        edges = [0, *accumulate(column_bytes)][::local_size]
        for host_idx, own in enumerate(gathered.of_host):
            widths = column_bytes[host_idx * local_size : (host_idx + 1) * local_size]
            if rows * sum(widths) == 0:
                continue
            target = as_bytes(out).view(rows, sum(column_bytes))
            columns = target[:, edges[host_idx] : edges[host_idx + 1]]
            # Side by side with the other hosts' columns, rows are not contiguous.
            whole = columns if rows == 1 else hosts.scratch("whole", columns.shape, torch.uint8)
            gather_inside(world, address(own), address(whole), rows, widths)
            if whole is not columns:
                columns.copy_(whole)


def broadcast(world: "World", x: Tensor, src: int) -> None:
    """Overwrite x by rank `src`'s: along its rail, then inside every host. Collective.

    Args:
        world: on several hosts.
        x: contiguous, of any dtype.
        src: a rank of the world.

    Raises:
        ConfigError: it is none.
    """
    if not 0 <= src < world.size:
        raise ConfigError(f"rank {src} is not in a world of {world.size}")
    hosts, layout = hosts_of(world), world.layout
    src_host_idx, src_local_rank = divmod(src, layout.local_size)
    num_bytes = x.numel() * x.dtype.itemsize
    with hosts.collective(call_of(native.fabric.OP_BROADCAST, x.dtype, 1, num_bytes, src)):
        if num_bytes == 0:
            return
        if layout.local_rank == src_local_rank:
            hosts.wait(hosts.rail.broadcast(as_bytes(x), src_host_idx))
        if layout.local_size > 1:
            native.weave.broadcast(world.host_comm, x.data_ptr(), num_bytes, src_local_rank)
