"""A band of visible pairs as rectangles that an attention kernel without offsets can do. Pure.

Such a kernel knows two masks: none, and causal from the top left (row a sees rows 0..a). The rest:

    b - a <= u           with u > 0, kv rows 0..u-1 are seen by all; from row u on it is causal
    l <= b - a           the same, looked at from the end: with q and kv in reverse order
    l <= b - a <= u      tiles of few q rows, each with the kv rows that any of them sees and a mask

Every pair of the band is in exactly one tile, and every row of a tile sees something in it.
"""

from typing import Literal, NamedTuple

TileKind = Literal["full", "causal", "reversed", "masked"]

# Rows of a masked tile: a quarter of the window. More compute pairs outside of the band, fewer fill
# the kernel's own blocks badly; measured flat between an eighth and a half at windows of 1024.
_WINDOW_PER_TILE = 4
_MIN_TILE_ROWS, _MAX_TILE_ROWS = 64, 512


class Tile(NamedTuple):
    """q rows [q_start, q_stop) over kv rows [kv_start, kv_stop)."""

    q_start: int
    q_stop: int
    kv_start: int
    kv_stop: int
    kind: TileKind
    """full; causal: b <= a; reversed: b <= a with both counted from their ends; masked: the band
    below. Rows a and b are counted from the tile's own."""
    lower: int | None = None
    upper: int | None = None


def split_band(q_rows: int, kv_rows: int, lower: int | None, upper: int | None) -> tuple[Tile, ...]:
    """Return tiles for all pairs (a, b) with lower <= b - a <= upper, none if there are none.

    Example: 4 q rows, 6 kv rows, upper 2: ((0, 4, 0, 2, "full"), (0, 4, 2, 6, "causal")).
    """
    whole = trim(q_rows, kv_rows, lower, upper)
    if whole is None:
        return ()
    q_start, q_stop, kv_start, kv_stop, kind, lower, upper = whole
    if kind == "full":
        return (whole,)
    if lower is None:
        assert upper is not None
        first = kv_start + upper
        full = (Tile(q_start, q_stop, kv_start, first, "full"),) if upper else ()
        return (*full, Tile(q_start, q_stop, first, kv_stop, "causal"))
    if upper is None:
        last = kv_start + q_stop - q_start + lower
        full = (Tile(q_start, q_stop, last, kv_stop, "full"),) if last < kv_stop else ()
        return (Tile(q_start, q_stop, kv_start, last, "reversed"), *full)
    size = (upper - lower + 1) // _WINDOW_PER_TILE // 32 * 32
    size = min(max(size, _MIN_TILE_ROWS), _MAX_TILE_ROWS)
    tiles = []
    for start in range(q_start, q_stop, size):
        stop = min(start + size, q_stop)
        apart = start - q_start
        tile = trim(stop - start, kv_stop - kv_start, lower + apart, upper + apart)
        assert tile is not None
        tiles.append(
            tile._replace(
                q_start=tile.q_start + start,
                q_stop=tile.q_stop + start,
                kv_start=tile.kv_start + kv_start,
                kv_stop=tile.kv_stop + kv_start,
            )
        )
    return tuple(tiles)


def trim(q_rows: int, kv_rows: int, lower: int | None, upper: int | None) -> Tile | None:
    """Return the smallest rectangle that has all of the band, with the band in its rows.

    Bounds that exclude nothing are None there; None if no pair is visible.
    """
    q_start = 0 if upper is None else max(0, -upper)
    q_stop = q_rows if lower is None else min(q_rows, kv_rows - lower)
    kv_start = 0 if lower is None else max(0, q_start + lower)
    kv_stop = kv_rows if upper is None else min(kv_rows, q_stop + upper)
    if q_start >= q_stop or kv_start >= kv_stop:
        return None
    if lower is not None and upper is not None and lower > upper:
        return None
    apart = q_start - kv_start
    if upper is not None:
        upper = None if upper + apart >= kv_stop - kv_start - 1 else upper + apart
    if lower is not None:
        lower = None if lower + apart <= q_start - q_stop + 1 else lower + apart
    kind: TileKind = "full" if lower is None and upper is None else "masked"
    return Tile(q_start, q_stop, kv_start, kv_stop, kind, lower, upper)
