"""Which tokens lie where, from the positions that ranks say they hold. Pure."""

from collections.abc import Sequence
from itertools import pairwise

from tokenfabric.errors import ConfigError
from tokenring.partition import Chunk, Layout


def layout_of_positions(positions: Sequence[Sequence[int]]) -> Layout:
    """Return the layout of one sequence whose ranks hold these positions, in this order.

    Any partition, even a made-up one. Positions may start anywhere, and each up to the last must be
    on one rank, once.

    Args:
        positions: of each rank's rows.

    Raises:
        ConfigError: a position comes twice (packed documents, or the same tokens on two ranks) or
            is missing, or there is none at all.
    """
    holder: dict[int, int] = {}
    for rank, mine in enumerate(positions):
        for position in mine:
            if position in holder:
                raise ConfigError(
                    f"position {position} is on rank {holder[position]} and again on rank {rank}: "
                    "shard position_ids as input_ids; for packed documents, whose positions begin "
                    "again, pass ring_layout=, the layout they were sharded by"
                )
            holder[position] = rank
    if not holder:
        raise ConfigError("no rank has any token")
    first, last = min(holder), max(holder)
    if last - first + 1 != len(holder):
        missing = next(p for p in range(first, last) if p not in holder)
        raise ConfigError(
            f"positions {first} to {last} are on the ranks, but {missing} is missing: every rank "
            "passes the positions of its own tokens, tokenring.position_ids(layout, rank)"
        )
    # Stripes are as far apart as there are ranks; everything else is told as neighbours.
    stripe = len(positions)
    is_striped = stripe > 1 and all(
        b - a == stripe for mine in positions for a, b in pairwise(mine)
    )
    step = stripe if is_striped else 1
    return Layout(tuple(_chunks(mine, step) for mine in positions), (first,), (len(holder),))


def _chunks(positions: Sequence[int], step: int) -> tuple[Chunk, ...]:
    chunks: list[Chunk] = []
    for position in positions:
        last = chunks[-1] if chunks else None
        if last is not None and last.start + step * last.count == position:
            chunks[-1] = Chunk(0, last.start, last.count + 1, step)
        else:
            chunks.append(Chunk(0, position, 1, step))
    return tuple(chunks)
