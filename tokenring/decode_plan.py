"""Which rank keeps a new token's keys, and which of them each kernel of a decode step reads. Pure.

A cache is a Layout of its sequences. On each rank the rows of one sequence lie one after another,
in the order of its chunks, in memory of the sequence's own.
"""

from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

from tokenfabric.errors import ConfigError
from tokenring.blocks import Band, Span
from tokenring.mask import Mask, band_between
from tokenring.partition import Chunk, Layout

UNMASKED = Band(None, None)


class Attend(NamedTuple):
    """One kernel: some queries of a sequence over some of its rows in this rank's cache."""

    q_rows: Span
    kv_rows: Span
    band: Band


class DecodeGroup(NamedTuple):
    """Sequences that the same kernels serve, as one batch."""

    sequences: Span
    attends: tuple[Attend, ...]
    """None: this rank has nothing that these sequences see."""


def empty_layout(num_sequences: int, world_size: int) -> Layout:
    """Return the layout of a cache that holds nothing."""
    return Layout(((),) * world_size, (0,) * num_sequences, (0,) * num_sequences)


def deal_tokens(cache: Layout, num_tokens: Sequence[int], block_tokens: int) -> Layout:
    """Deal the next tokens of each sequence, so that ranks stay balanced.

    Up to a position that is a multiple of block_tokens, tokens follow the one before them; each
    block then goes to the rank with the fewest rows. Ranks that were equal differ by at most a
    block for each sequence, and a rank's rows are few long chunks, each a kernel's operand.

    Args:
        cache: what the ranks hold.
        num_tokens: new tokens of each sequence.
        block_tokens: at least 1.

    Raises:
        ConfigError: a number is negative, or there is not one for each sequence.
    """
    if len(num_tokens) != len(cache.lengths) or min(num_tokens, default=0) < 0 or block_tokens < 1:
        raise ConfigError(
            f"{tuple(num_tokens)} new tokens in blocks of {block_tokens}: give 0 or more for each "
            f"of {len(cache.lengths)} sequences, in blocks of at least 1"
        )
    ranks: list[list[Chunk]] = [[] for _ in cache.ranks]
    rows = [cache.num_rows(rank) for rank in range(cache.world_size)]
    ends = tuple(a + b for a, b in zip(cache.starts, cache.lengths, strict=True))
    owners = _last_owners(cache)
    for sequence, (start, count) in enumerate(zip(ends, num_tokens, strict=True)):
        owner, position = owners[sequence], start
        while position < start + count:
            if owner is None or position % block_tokens == 0:
                owner = rows.index(min(rows))
            stop = min(start + count, (position // block_tokens + 1) * block_tokens)
            ranks[owner].append(Chunk(sequence, position, stop - position))
            rows[owner] += stop - position
            position = stop
    return Layout(tuple(map(tuple, ranks)), ends, tuple(num_tokens))


def extend_cache(cache: Layout, new: Layout) -> Layout:
    """Return the layout of a cache to which each rank has appended its new rows.

    The chunks of a rank are in order of their sequences, those of one in the order in which they
    came; neighbours are joined.

    Raises:
        ConfigError: the new tokens do not start where the cache ends.
    """
    both = cache.followed_by(new)
    return Layout(tuple(_joined(chunks) for chunks in both.ranks), both.starts, both.lengths)


def rows_of_sequences(layout: Layout, rank: int) -> list[int]:
    """Return how many rows of each sequence a rank holds."""
    rows = [0] * len(layout.lengths)
    for chunk in layout.ranks[rank]:
        rows[chunk.sequence] += chunk.count
    return rows


def plan_decode(cache: Layout, rank: int, num_queries: int, mask: Mask) -> tuple[DecodeGroup, ...]:
    """Plan a rank's part of a decode step.

    The queries are the last `num_queries` tokens of each sequence, whose keys are in the cache.
    What is seen without a mask is one kernel for each sequence, with one query that is all of it;
    neighbouring sequences with equal kernels are one batch.

    Args:
        cache: with the new tokens.
        rank: whose part.
        num_queries: of each sequence; no sequence is shorter.
        mask: how far a query sees.
    """
    chunks: list[list[Chunk]] = [[] for _ in cache.lengths]
    for chunk in cache.ranks[rank]:
        chunks[chunk.sequence].append(chunk)
    ends = [start + length for start, length in zip(cache.starts, cache.lengths, strict=True)]
    plans = [
        _attends(mine, end - num_queries, num_queries, mask)
        for mine, end in zip(chunks, ends, strict=True)
    ]
    groups, first = [], 0
    for attends, same in groupby(plans):
        stop = first + len(list(same))
        groups.append(DecodeGroup(Span(first, stop), attends))
        first = stop
    return tuple(groups)


def decode_bytes(
    num_sequences: int, num_queries: int, heads_q: int, head_dim_v: int, world_size: int
) -> int:
    """Return what a rank sends in a decode step of one layer: out and lse in fp32, to each peer."""
    return num_sequences * num_queries * heads_q * (head_dim_v + 1) * 4 * (world_size - 1)


def _attends(chunks: list[Chunk], q_start: int, num_queries: int, mask: Mask) -> tuple[Attend, ...]:
    result: list[Attend] = []
    row = 0
    for chunk in chunks:
        # Queries next to each other and keys further apart have no band: then each by itself.
        singly = chunk.step != 1 and chunk.count > 1
        for q_rows in (
            [Span(q, q + 1) for q in range(num_queries)] if singly else [Span(0, num_queries)]
        ):
            found = _attend(chunk, row, q_start, q_rows, mask)
            if found is not None:
                _add(result, found)
        row += chunk.count
    return tuple(result)


def _attend(chunk: Chunk, row: int, q_start: int, q_rows: Span, mask: Mask) -> Attend | None:
    """Return the kernel of one chunk that starts at a row of the sequence's memory."""
    num_queries = q_rows.size
    band = band_between(
        mask, q_start + q_rows.start, 1, num_queries, chunk.start, chunk.step, chunk.count
    )
    if band is None:
        return None
    lower, upper = band
    first = 0 if lower is None else max(0, lower)
    stop = chunk.count if upper is None else min(chunk.count, num_queries + upper)
    if first >= stop:
        return None
    # What is left of a bound that rows first..stop-1 do not all keep for every query.
    lower = None if lower is None or lower - first <= 1 - num_queries else lower - first
    upper = None if upper is None or upper - first >= stop - first - 1 else upper - first
    return Attend(q_rows, Span(row + first, row + stop), Band(lower, upper))


def _add(attends: list[Attend], new: Attend) -> None:
    """Append a kernel, as part of the last one where that reads the rows just before."""
    if attends:
        last = attends[-1]
        if (
            last.band == new.band == UNMASKED
            and last.q_rows == new.q_rows
            and last.kv_rows.stop == new.kv_rows.start
        ):
            attends[-1] = last._replace(kv_rows=Span(last.kv_rows.start, new.kv_rows.stop))
            return
    attends.append(new)


def _joined(chunks: Sequence[Chunk]) -> tuple[Chunk, ...]:
    result: list[Chunk] = []
    for chunk in sorted(chunks, key=lambda chunk: chunk.sequence):
        last = result[-1] if result else None
        if (
            last is not None
            and last.sequence == chunk.sequence
            and (last.step == 1 or last.count == 1)
            and (chunk.step == 1 or chunk.count == 1)
            and last.start + last.count == chunk.start
        ):
            result[-1] = Chunk(last.sequence, last.start, last.count + chunk.count)
        elif chunk.count:
            result.append(chunk)
    return tuple(result)


def _last_owners(layout: Layout) -> list[int | None]:
    """Return who holds the last position of each sequence, None for empty ones."""
    owners: list[int | None] = [None] * len(layout.lengths)
    ends = [a + b for a, b in zip(layout.starts, layout.lengths, strict=True)]
    for rank, chunks in enumerate(layout.ranks):
        for chunk in chunks:
            last = chunk.start + chunk.step * (chunk.count - 1)
            if chunk.count and last + 1 == ends[chunk.sequence]:
                owners[chunk.sequence] = rank
    return owners
