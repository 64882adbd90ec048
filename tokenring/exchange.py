"""Small exchanges beside attention: every rank's rows, or numbers, on every rank."""

from collections.abc import Sequence
from typing import TYPE_CHECKING
from zlib import crc32

import torch
from torch import Tensor

from tokenfabric import native
from tokenfabric.channel import Receipt
from tokenfabric.hosts import Call
from tokenring.connection import collective

if TYPE_CHECKING:
    from tokenfabric.world import World


def gather_rows(
    world: "World", x: Tensor, rows: Sequence[int], *, terms: str = "gather"
) -> list[Tensor]:
    """Return every rank's x, in rank order. Collective.

    Args:
        world: the ranks.
        x: [rows of this rank, ..], contiguous, on the CPU or where the world is; the other
            dimensions, the dtype and the kind of device are equal on all ranks.
        rows: of every rank.
        terms: what else must be equal on all ranks, in words.

    Raises:
        MismatchError: the ranks differ in shape, dtype, rows or terms; nothing moved.
        PeerLostError, CommTimeoutError: naming the peer.
    """
    row_elems = x[:1].numel() if len(x) else torch.Size(x.shape[1:]).numel()
    text = f"{terms} {x.dtype} on {x.device.type} {tuple(rows)}"
    call = Call(
        native.fabric.OP_MESSAGES,
        rows=sum(rows),
        row_elems=row_elems,
        options=crc32(text.encode()),
    )
    row_bytes = row_elems * x.dtype.itemsize
    slot_bytes = -(-max(rows) * row_bytes // 64) * 64
    gathered = {world.rank: x}
    with collective(world, call, x.device) as channel:
        memory = channel.memory(slot_bytes * world.size)
        coming: list[tuple[int, Receipt, Tensor]] = []
        for distance in range(1, world.size):
            peer = (world.rank - distance) % world.size
            into = memory[peer * slot_bytes : peer * slot_bytes + rows[peer] * row_bytes]
            coming.append((peer, channel.receive(peer, into, f"rows of rank {peer}"), into))
        for distance in range(1, world.size):
            peer = (world.rank + distance) % world.size
            channel.send(peer, [x], f"rows of rank {world.rank}")
        for peer, receipt, into in coming:
            receipt.wait()
            gathered[peer] = into.clone().view(x.dtype).view(rows[peer], *x.shape[1:])
    return [gathered[rank] for rank in range(world.size)]


def sum_over_ranks(world: "World", x: Tensor) -> Tensor:
    """Return the sum of a small tensor over the ranks, the same bits on all of them. Collective."""
    parts = gather_rows(world, x.reshape(1, -1), (1,) * world.size)
    return torch.cat(parts).sum(dim=0).view(x.shape)
