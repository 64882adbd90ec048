"""Moving tensors between GPUs without reducing them, through the world's slots."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from tokenfabric import native
from tokenfabric.errors import ConfigError
from tokenweave.cuda.call import ranks_of
from tokenweave.cuda.plan import DEFAULT_SM_BUDGET
from tokenweave.native_call import address

if TYPE_CHECKING:
    from tokenfabric.cuda.ranks import CudaRanks
    from tokenfabric.world import World

# What a kernel moves at a time; parts are padded to whole units of it.
_UNIT_BYTES = 4096


def all_gather(
    world: "World", x: torch.Tensor, out: torch.Tensor, rows: int, column_bytes: Sequence[int]
) -> None:
    """Put the ranks' columns side by side: out[:, columns of rank r] = x of rank r. Collective.

    Args:
        x: [rows, column_bytes[rank]] in bytes, contiguous, on the world's GPU.
        out: [rows, sum(column_bytes)] in bytes, contiguous.
        rows, column_bytes: the same on all ranks.

    Raises:
        ConfigError: one row of all ranks is larger than the slots.
    """
    ranks = ranks_of(world)
    stream = ranks.stream()
    out_bytes = sum(column_bytes)
    widest = max(column_bytes)
    if rows * widest == 0:
        return
    starts = [sum(column_bytes[:rank]) for rank in range(world.size)]
    if world.size == 1:
        native.cuda.copy(address(out), address(x), rows * out_bytes, stream)
        return
    room = _room(ranks)
    if rows > 1 and widest > room:
        raise ConfigError(
            f"a row of {widest} bytes a rank does not fit in the slots, which take {room}: raise "
            "TOKENFABRIC_CUDA_SLOT_MIB on all ranks"
        )
    # A single row may be cut; of several, whole ones go at a time.
    rows_at_once = min(rows, max(1, room // widest))
    bytes_at_once = min(widest, room)
    for row in range(0, rows, rows_at_once):
        count = min(rows_at_once, rows - row)
        for column in range(0, widest, bytes_at_once):
            widths = [max(0, min(bytes_at_once, width - column)) for width in column_bytes]
            parts = _gather_parts(
                ranks,
                address(x) + row * column_bytes[world.rank] + column,
                count * widths[world.rank],
                count * max(widths),
                stream,
            )
            for part, start, width in zip(parts, starts, widths, strict=True):
                to = address(out) + row * out_bytes + start + column
                native.cuda.copy_rows(to, out_bytes, part, width, width, count, stream)


def broadcast(world: "World", x: torch.Tensor, src: int) -> None:
    """Overwrite x with rank `src`'s. Collective.

    Every rank sends something, which costs the links world.size times what is needed: for what is
    done seldom.
    """
    ranks = ranks_of(world)
    if not 0 <= src < world.size:
        raise ConfigError(f"src must be a rank of this world of {world.size}, got {src}")
    stream = ranks.stream()
    if world.size == 1:
        return
    num_bytes, room = x.numel() * x.dtype.itemsize, _room(ranks)
    for start in range(0, num_bytes, room):
        count = min(room, num_bytes - start)
        own = count if world.rank == src else 0
        parts = _gather_parts(ranks, address(x) + start, own, count, stream)
        native.cuda.copy(address(x) + start, parts[src], count, stream)


def _room(ranks: "CudaRanks") -> int:
    """Return how many bytes a rank can bring to one gather, in whole units."""
    whole = 3 * ranks.workspace.slot_bytes // ranks.size
    return whole // _UNIT_BYTES * _UNIT_BYTES


def _gather_parts(
    ranks: "CudaRanks", own: int, own_bytes: int, part_bytes: int, stream: int
) -> list[int]:
    """Return where the parts of all ranks lie after a gather, each of at most `part_bytes`.

    The slots are one piece of memory, of which rank r fills the r-th part. They may be filled as
    soon as the last launch has ended: it ends when all ranks have read what they wanted of them.
    """
    units = -(-part_bytes // _UNIT_BYTES)
    base = ranks.memory.by_rank[ranks.rank] + ranks.workspace.partial
    parts = [base + rank * units * _UNIT_BYTES for rank in range(ranks.size)]
    native.cuda.copy(parts[ranks.rank], own, own_bytes, stream)
    native.cuda.gather(
        ranks.group,
        ranks.capability.reach == "multicast",
        None,
        parts[ranks.rank],
        ranks.memory.native,
        ranks.workspace.partial,
        units * ranks.size,
        _UNIT_BYTES,
        DEFAULT_SM_BUDGET,
        stream,
    )
    return parts
