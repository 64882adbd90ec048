"""Tiles and waves of GEMMs, and where a batch is cut without a wave more. Pure.

A GEMM [rows, k] x [k, n] is cut in tiles; as many run at once as there are SMs, which is a wave.
What is left over for the last wave costs as much as a whole one. Two halves of a batch need no more
waves than the batch if the head fills its waves:

    300 tiles on 132 SMs: 3 waves. 150 + 150: 2 + 2. 132 + 168: 1 + 2.

So a GEMM of W waves has at most W - 1 ranges of boundaries that add none: with w waves for the head
and W - w for the tail, those from T - most_tokens(W - w) to most_tokens(w). A layer has several
GEMMs: their ranges are intersected (equal_wave_ranges). What a boundary means for attention and for
the reductions is in split_cost.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

from tokenfabric.kernel import Kernel, num_waves
from tokenweave.device import Device, Tile

_BYTES = 2
"""Of an element: bf16."""

Range = tuple[int, int]
"""From and to, both included."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Gemm:
    """One GEMM of a layer on one rank, without its tokens: [rows, k] x [k, n]."""

    name: str
    n: int
    k: int
    rows_per_token: int = 1
    """Of experts: to how many of them a token goes."""
    experts: int = 0
    """Whose weights it is grouped over; 0: it has one matrix."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Tiling:
    """A GEMM cut in tiles of one shape: strips of rows, each of so many tiles."""

    rows: int
    """Of a strip."""
    columns: int
    """Tiles of a strip."""
    rows_per_token: int = 1
    experts: int = 0

    def tiles(self, tokens: int) -> int:
        """Return the number of tiles.

        A token's experts fall anywhere: the last strip of each is half full on average. There are
        no more strips than rows.
        """
        rows = tokens * self.rows_per_token
        return min(rows, -(-rows // self.rows) + self.experts // 2) * self.columns

    def most_tokens(self, waves: int, num_sms: int) -> int:
        """Return for how many tokens so many waves suffice; 0 if for none."""
        strips = waves * num_sms // self.columns
        rows = max(strips, (strips - self.experts // 2) * self.rows)
        return rows // self.rows_per_token


class TiledGemm:
    """A GEMM on a device: how it is cut, and how long it takes for any number of tokens."""

    def __init__(self, gemm: Gemm, device: Device) -> None:
        """Work out what does not depend on the tokens."""
        self.gemm = gemm
        self._start_s, self._num_sms = device.gemm_start_s, device.num_sms
        rate = device.expert_flops_per_sm if gemm.experts else device.gemm_flops_per_sm
        tiles = (device.expert_tile,) if gemm.experts else device.tiles
        self._cuts = tuple(_cut(gemm, tile, rate, device.tile_start_s) for tile in tiles)
        self._shapes = tuple((it.rows, it.columns, tile_s) for it, tile_s in self._cuts)
        element_s = _BYTES / device.memory_bandwidth
        self._weights_s, self._row_s = gemm.k * gemm.n * element_s, (gemm.k + gemm.n) * element_s

    def tiling(self, tokens: int) -> Tiling:
        """Return the cut that takes least on the whole device.

        A library does not know which SMs are taken: it chooses for all of them.
        """
        tiles, tile_s, _ = self.work(tokens)
        return next(it for it, one_s in self._cuts if (it.tiles(tokens), one_s) == (tiles, tile_s))

    def work(self, tokens: int) -> tuple[int, float, float]:
        """Return the number of tiles, the time of one, and the time that memory needs for all.

        In the cut that takes least. A planner asks some hundred times: Tiling.tiles, written out.
        """
        experts, num_sms = self.gemm.experts, self._num_sms
        rows = tokens * self.gemm.rows_per_token
        tiles, tile_s, least_s = 0, 0.0, inf
        for height, columns, one_s in self._shapes:
            strips = -(-rows // height) + experts // 2
            if strips > rows:
                strips = rows
            time_s = -(-strips * columns // num_sms) * one_s
            if time_s < least_s:
                tiles, tile_s, least_s = strips * columns, one_s, time_s
        matrices = min(experts, rows) if experts else 1
        return tiles, tile_s, matrices * self._weights_s + rows * self._row_s

    def kernel(self, tokens: int) -> Kernel:
        """Return the launch."""
        tiles, tile_s, memory_s = self.work(tokens)
        return Kernel(
            name=self.gemm.name,
            start_s=self._start_s,
            tiles=tiles,
            tile_s=tile_s,
            memory_s=memory_s,
        )


def equal_wave_ranges(
    tilings: Sequence[Tiling], num_tokens: int, num_sms: int, between: Range | None = None
) -> list[Range]:
    """Return all boundaries with which no GEMM needs a wave more than the whole batch.

    Args:
        tilings: how each GEMM of the whole batch is cut; the halves are counted in the same tiles.
        num_tokens: of the batch.
        num_sms: that compute.
        between: only boundaries in this range.
    """
    low, high = between or (1, num_tokens - 1)
    low, high = max(low, 1), min(high, num_tokens - 1)
    found = [(low, high)] if low <= high else []
    for tiling in set(tilings):
        if found:
            within = _equal_waves(tiling, num_tokens, num_sms, found[0][0], found[-1][1])
            found = _intersection(found, within)
    return found


def adds_no_wave(tilings: Sequence[Tiling], num_tokens: int, num_sms: int, boundary: int) -> bool:
    """Return whether a boundary is one of `equal_wave_ranges`."""
    for tiling in tilings:
        whole, head, tail = (
            num_waves(tiling.tiles(tokens), num_sms)
            for tokens in (num_tokens, boundary, num_tokens - boundary)
        )
        if head + tail > whole:
            return False
    return True


def _equal_waves(tiling: Tiling, num_tokens: int, num_sms: int, low: int, high: int) -> list[Range]:
    """Return the ranges of one GEMM that have a boundary from `low` to `high`."""
    waves, least, rest = (
        num_waves(tiling.tiles(tokens), num_sms) for tokens in (num_tokens, low, num_tokens - high)
    )
    ranges = (
        (num_tokens - tiling.most_tokens(waves - head, num_sms), tiling.most_tokens(head, num_sms))
        for head in range(least, waves - rest + 1)
    )
    return [it for it in ranges if it[0] <= it[1]]


def _intersection(ours: list[Range], theirs: list[Range]) -> list[Range]:
    """Return what is in both lists of ranges, which are in order and apart."""
    found, left, right = [], 0, 0
    while left < len(ours) and right < len(theirs):
        low = max(ours[left][0], theirs[right][0])
        high = min(ours[left][1], theirs[right][1])
        if low <= high:
            found.append((low, high))
        if ours[left][1] < theirs[right][1]:
            left += 1
        else:
            right += 1
    return found


def _cut(gemm: Gemm, tile: Tile, flops_per_sm: float, start_s: float) -> tuple[Tiling, float]:
    tiling = Tiling(
        rows=tile.rows,
        columns=-(-gemm.n // tile.columns),
        rows_per_token=gemm.rows_per_token,
        experts=gemm.experts,
    )
    flops = 2.0 * tile.rows * tile.columns * gemm.k
    return tiling, flops / (flops_per_sm * tile.efficiency) + start_s
