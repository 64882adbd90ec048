"""Who holds which tokens: sequences dealt to ranks, and the exact way back. Pure.

A layout says, for each rank, which positions its local rows have. Queries and keys may have
different layouts, as long as they speak of the same sequences and positions.

Example: 10 tokens on 2 ranks. contiguous: 0-4 and 5-9. zigzag: four chunks of 3 3 2 2, rank 0 has
the first and the last (0-2, 8-9), rank 1 the middle (3-7), so that causal work is equal. striped:
0 2 4 6 8 and 1 3 5 7 9.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, islice, pairwise
from typing import Literal, NamedTuple, get_args

from tokenfabric.errors import ConfigError

Partition = Literal["contiguous", "zigzag", "striped"]


class Chunk(NamedTuple):
    """Consecutive local rows with positions start, start + step, ... of one sequence."""

    sequence: int
    start: int
    count: int  # type: ignore[assignment]  # hides tuple.count
    step: int = 1


@dataclass(frozen=True, slots=True)
class Layout:
    """The rows of every rank, in order.

    Attributes:
        ranks: the chunks of each rank; a rank may have none.
        starts: the first position of each sequence: nonzero where the rows are new tokens behind
            a cache of so many.
        lengths: the number of tokens of each sequence.
    """

    ranks: tuple[tuple[Chunk, ...], ...]
    starts: tuple[int, ...]
    lengths: tuple[int, ...]

    @property
    def world_size(self) -> int:
        return len(self.ranks)

    @property
    def num_tokens(self) -> int:
        return sum(self.lengths)

    def num_rows(self, rank: int) -> int:
        """Return how many local rows a rank has."""
        return sum(chunk.count for chunk in self.ranks[rank])

    def positions(self, rank: int) -> list[int]:
        """Return the position of each local row within its sequence."""
        return [
            chunk.start + chunk.step * row
            for chunk in self.ranks[rank]
            for row in range(chunk.count)
        ]

    def shard_indices(self, rank: int) -> list[int]:
        """Return the indices of a rank's rows in the whole tensor, sequences one after another."""
        offsets = [0, *accumulate(self.lengths)]
        return [
            offsets[chunk.sequence] + chunk.start - self.starts[chunk.sequence] + chunk.step * row
            for chunk in self.ranks[rank]
            for row in range(chunk.count)
        ]

    def unshard_indices(self) -> list[int]:
        """Return, for each row of the whole tensor, its place in the ranks' rows put end to end."""
        indices = [0] * self.num_tokens
        place = 0
        for rank in range(self.world_size):
            for index in self.shard_indices(rank):
                indices[index] = place
                place += 1
        return indices

    def as_integers(self) -> list[int]:
        """Return the layout as numbers, for operators: see `of_integers`."""
        numbers = [len(self.starts), *self.starts, *self.lengths]
        for chunks in self.ranks:
            numbers.append(len(chunks))
            for chunk in chunks:
                numbers.extend(chunk)
        return numbers

    @classmethod
    def of_integers(cls, numbers: Sequence[int]) -> "Layout":
        """Return the layout that `as_integers` gave."""
        left = iter(numbers)
        num_sequences = next(left)
        starts, lengths = (tuple(islice(left, num_sequences)) for _ in range(2))
        ranks = tuple(
            tuple(Chunk(*islice(left, len(Chunk._fields))) for _ in range(num_chunks))
            for num_chunks in left
        )
        return cls(ranks, starts, lengths)

    def followed_by(self, other: "Layout") -> "Layout":
        """Return the layout of a cache (this) to which each rank has appended new rows (other).

        Raises:
            ConfigError: the other's sequences do not start where these end.
        """
        ends = tuple(s + n for s, n in zip(self.starts, self.lengths, strict=True))
        if ends != other.starts or self.world_size != other.world_size:
            raise ConfigError(
                f"a layout that ends at positions {ends} on {self.world_size} ranks cannot be "
                f"followed by one that starts at {other.starts} on {other.world_size}; partition "
                "the new tokens with starts= the lengths so far"
            )
        return Layout(
            tuple((*mine, *new) for mine, new in zip(self.ranks, other.ranks, strict=True)),
            self.starts,
            tuple(a + b for a, b in zip(self.lengths, other.lengths, strict=True)),
        )


def partition_tokens(
    lengths: int | Sequence[int],
    world_size: int,
    partition: Partition = "zigzag",
    *,
    starts: Sequence[int] | None = None,
    rank_lengths: Sequence[int] | None = None,
) -> Layout:
    """Deal sequences to ranks.

    contiguous deals the sequences, put end to end, in equal stretches, the larger ones first (one
    sequence of 7 on 3 ranks: 3 2 2), or in stretches of rank_lengths. zigzag cuts every sequence in
    2 * world_size chunks and gives rank r the r-th from either end; striped gives it every
    world_size-th token. Of several sequences, each begins at the rank where the one before it left
    off, so that rows differ by at most one between ranks whatever the lengths.

    Args:
        lengths: tokens of each sequence (or of the only one).
        world_size: number of ranks.
        partition: contiguous, zigzag or striped.
        starts: position of the first token of each sequence; 0 if not given.
        rank_lengths: rows of each rank, for contiguous only.

    Raises:
        ConfigError: a length or start is negative, the partition is unknown, or rank_lengths do not
            add up.
    """
    lengths = (lengths,) if isinstance(lengths, int) else tuple(lengths)
    origin = tuple(starts) if starts is not None else (0,) * len(lengths)
    _check(lengths, origin, world_size, partition, rank_lengths)
    ranks: list[list[Chunk]] = [[] for _ in range(world_size)]
    if partition == "contiguous":
        _deal_contiguous(ranks, lengths, origin, rank_lengths)
    else:
        shift = 0
        for sequence, (start, length) in enumerate(zip(origin, lengths, strict=True)):
            deal = _deal_zigzag if partition == "zigzag" else _deal_striped
            if length:
                deal(ranks, sequence, start, length, shift)
            shift = (shift + length) % world_size
    return Layout(tuple(map(tuple, ranks)), origin, lengths)


def _deal_contiguous(
    ranks: list[list[Chunk]],
    lengths: tuple[int, ...],
    starts: tuple[int, ...],
    rank_lengths: Sequence[int] | None,
) -> None:
    world_size = len(ranks)
    shares = rank_lengths or split_evenly(sum(lengths), world_size)
    rank, room = 0, shares[0]
    for sequence, (start, length) in enumerate(zip(starts, lengths, strict=True)):
        done = 0
        while done < length:
            while room == 0:
                rank += 1
                room = shares[rank]
            count = min(room, length - done)
            ranks[rank].append(Chunk(sequence, start + done, count))
            done += count
            room -= count


def _deal_zigzag(
    ranks: list[list[Chunk]], sequence: int, start: int, length: int, shift: int
) -> None:
    world_size = len(ranks)
    # Chunk k and its mirror image go together; the first `length % world_size` pairs are one longer
    # than the others, in the chunk nearer to the beginning or, if that has it already, the other.
    pairs = split_evenly(length, world_size)
    sizes = [-(-pair // 2) for pair in pairs] + [pair // 2 for pair in reversed(pairs)]
    edges = [start, *accumulate(sizes, initial=start)][1:]
    for pair in range(world_size):
        chunks = [
            Chunk(sequence, first, last - first)
            for first, last in (
                (edges[pair], edges[pair + 1]),
                (edges[-2 - pair], edges[-1 - pair]),
            )
            if last > first
        ]
        if len(chunks) == 2 and chunks[0].start + chunks[0].count == chunks[1].start:
            chunks = [Chunk(sequence, chunks[0].start, chunks[0].count + chunks[1].count)]
        ranks[(pair + shift) % world_size] += chunks


def _deal_striped(
    ranks: list[list[Chunk]], sequence: int, start: int, length: int, shift: int
) -> None:
    world_size = len(ranks)
    for index, count in enumerate(split_evenly(length, world_size)):
        if count:
            step = world_size if count > 1 else 1
            ranks[(index + shift) % world_size].append(Chunk(sequence, start + index, count, step))


def split_evenly(num_items: int, num_parts: int) -> list[int]:
    """Return sizes that differ by at most one, the larger ones first."""
    base, larger = divmod(num_items, num_parts)
    return [base + (index < larger) for index in range(num_parts)]


def spans_of(sizes: Sequence[int]) -> list[tuple[int, int]]:
    """Return the (start, stop) of parts with these sizes, put end to end."""
    return list(pairwise(accumulate(sizes, initial=0)))


def _check(
    lengths: tuple[int, ...],
    starts: tuple[int, ...],
    world_size: int,
    partition: str,
    rank_lengths: Sequence[int] | None,
) -> None:
    if world_size < 1:
        raise ConfigError(f"world_size is {world_size}: a layout needs at least 1 rank")
    if partition not in get_args(Partition):
        raise ConfigError(
            f"unknown partition {partition!r}: choose one of {', '.join(get_args(Partition))}"
        )
    if len(starts) != len(lengths):
        raise ConfigError(f"{len(starts)} starts for {len(lengths)} sequences: give one for each")
    for name, values in (("length", lengths), ("start", starts), ("rank length", rank_lengths)):
        if values and min(values) < 0:
            raise ConfigError(f"{name} {min(values)} is negative: pass 0 or more")
    if rank_lengths is None:
        return
    if partition != "contiguous":
        raise ConfigError(f"rank_lengths go with contiguous; {partition} deals by itself")
    if len(rank_lengths) != world_size or sum(rank_lengths) != sum(lengths):
        raise ConfigError(
            f"rank_lengths {tuple(rank_lengths)} must be {world_size} numbers that sum to "
            f"{sum(lengths)} tokens"
        )
