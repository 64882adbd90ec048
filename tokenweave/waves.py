"""Tiles and waves of GEMMs, and where a batch is cut without a wave more. Pure.

A GEMM [m, k] x [k, n] is cut in tiles; as many run at once as there are SMs, which is a wave. What
is left over for the last wave costs as much as a whole one. Two halves of a batch need no more
waves than the batch if the head fills its waves:

    300 tiles on 132 SMs: 3 waves. 150 + 150: 2 + 2. 132 + 168: 1 + 2.

A layer has several GEMMs, whose tiles do not agree on such a boundary: each counts with the time of
its waves. The planner of whole passes (split.py) adds what a boundary means for attention and for
the reductions.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from tokenfabric.kernel import Kernel, num_waves
from tokenweave.device import Device, Tile


@dataclass(frozen=True, kw_only=True, slots=True)
class Gemm:
    """One GEMM of a layer without its rows: [m, k] x [k, n]."""

    name: str
    n: int
    k: int


def num_tiles(m: int, n: int, tile: Tile) -> int:
    """Return into how many tiles an [m, n] output is cut."""
    return -(-m // tile.rows) * -(-n // tile.columns)


def tile_s(k: int, tile: Tile, flops_per_sm: float, start_s: float) -> float:
    """Return the time of one tile of an inner dimension k on one SM."""
    return 2.0 * tile.rows * tile.columns * k / (flops_per_sm * tile.efficiency) + start_s


@lru_cache(maxsize=16384)
def choose_tile(m: int, n: int, k: int, device: Device) -> Tile:
    """Return the tile in which a GEMM [m, k] x [k, n] takes least on the whole device."""

    def time_s(tile: Tile) -> float:
        waves = num_waves(num_tiles(m, n, tile), device.num_sms, device.wave_smoothing)
        return waves * tile_s(k, tile, device.gemm_flops_per_sm, device.tile_start_s)

    return min(device.tiles, key=time_s)


@lru_cache(maxsize=16384)
def gemm_kernel(m: int, n: int, k: int, device: Device, name: str = "gemm") -> Kernel:
    """Return the launch of a bf16 GEMM [m, k] x [k, n] in the tiles that suit the whole device.

    A library does not know which SMs are taken: it chooses for all of them.
    """
    tile = choose_tile(m, n, k, device)
    return Kernel(
        name=name,
        start_s=device.gemm_start_s,
        tiles=num_tiles(m, n, tile),
        tile_s=tile_s(k, tile, device.gemm_flops_per_sm, device.tile_start_s),
        wave_smoothing=device.wave_smoothing,
        memory_s=2.0 * (m * k + k * n + m * n) / device.memory_bandwidth,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class WaveCount:
    """The waves of a layer's GEMMs, unsplit and in two halves, one number for each GEMM."""

    whole: tuple[int, ...]
    head: tuple[int, ...]
    tail: tuple[int, ...]

    @property
    def extra(self) -> tuple[int, ...]:
        """Waves that splitting adds to each GEMM."""
        rows = zip(self.whole, self.head, self.tail, strict=True)
        return tuple(head + tail - whole for whole, head, tail in rows)

    @property
    def is_equal(self) -> bool:
        """Whether no GEMM needs a wave more."""
        return not any(self.extra)


def count_waves(
    gemms: Sequence[Gemm], tiles: Sequence[Tile], num_tokens: int, boundary: int, num_sms: int
) -> WaveCount:
    """Count the waves of GEMMs whose tiles are given, one for each, for a boundary."""

    def waves(m: int) -> tuple[int, ...]:
        pairs = zip(gemms, tiles, strict=True)
        return tuple(-(-num_tiles(m, gemm.n, tile) // num_sms) for gemm, tile in pairs)

    return WaveCount(
        whole=waves(num_tokens), head=waves(boundary), tail=waves(num_tokens - boundary)
    )


def extra_wave_s(
    gemms: Sequence[Gemm],
    tiles: Sequence[Tile],
    num_tokens: int,
    boundary: int,
    device: Device,
    num_sms: int,
) -> float:
    """Return the time of the waves that a boundary adds, over all GEMMs."""
    count = count_waves(gemms, tiles, num_tokens, boundary, num_sms)
    return sum(
        extra * tile_s(gemm.k, tile, device.gemm_flops_per_sm, device.tile_start_s)
        for extra, gemm, tile in zip(count.extra, gemms, tiles, strict=True)
    )


def whole_wave_boundary(
    gemms: Sequence[Gemm],
    tiles: Sequence[Tile],
    num_tokens: int,
    device: Device,
    *,
    num_sms: int | None = None,
    boundaries: Iterable[int] | None = None,
) -> int | None:
    """Return the boundary that adds the least time in waves; of equal ones that nearest the middle.

    Adds no wave at all wherever that can be done.

    Args:
        gemms: the GEMMs of a layer on one rank.
        tiles: the tile of each.
        num_tokens: rows of the whole batch.
        device: whose rates weight the waves.
        num_sms: SMs that compute; all if None.
        boundaries: what to choose from; if None all that matter: no wave count changes between
            multiples of a tile's rows, counted from either end.

    Returns:
        Tokens of the head; None where there is nothing to choose from.
    """
    if boundaries is None:
        heights = {tile.rows for tile in tiles}
        steps = {row for rows in heights for row in range(rows, num_tokens, rows)}
        boundaries = steps | {num_tokens - row for row in steps}
    best: tuple[float, int, int] | None = None
    for boundary in boundaries:
        if 0 < boundary < num_tokens:
            added_s = extra_wave_s(
                gemms, tiles, num_tokens, boundary, device, num_sms or device.num_sms
            )
            candidate = (added_s, abs(2 * boundary - num_tokens), boundary)
            best = candidate if best is None else min(best, candidate)
    return None if best is None else best[2]
