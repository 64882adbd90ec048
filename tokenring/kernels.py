"""Few large kernels for a set of q rows over a set of kv rows. Pure.

Rows that follow each other in a sequence are joined to runs, also across owners (and the stripes of
a complete set are interleaved to one run). Between two runs the mask is a band. What sees each
other without a mask is put in one kernel however far apart, so that a rank has one kernel for all
q rows above it and one for all below.
"""

from typing import NamedTuple

from tokenring.blocks import Band, Piece
from tokenring.mask import Mask, band_between, count_pairs
from tokenring.runs import Item, Operand, Run, concatenate, cut_pieces, runs_apart

# Runs that are tried as one band: beyond this the test would cost more than the kernels it saves.
_MAX_JOINED_RUNS = 4
_UNMASKED = Band(None, None)


class Kernel(NamedTuple):
    """One attention call; becomes a Compute when its outputs are named."""

    q: tuple[Piece, ...]
    q_rows: int
    kv: tuple[Piece, ...]
    kv_rows: int
    band: Band
    num_pairs: int


def kernels_between(mask: Mask, q: Operand, kv: Operand) -> list[Kernel]:
    """Return kernels that compute every visible pair of rows of a sequence once, and no other."""
    left, right = mask.left, mask.right
    least, most = kv.first - q.last, kv.last - q.first
    if (right is None or most <= right) and (left is None or least >= -left):
        return [_unmasked_kernel(q, kv)]
    if (right is not None and least > right) or (left is not None and most < -left):
        return []
    if len(q.items) > 1 or len(kv.items) > 1:
        unmasked = _unmasked_parts(mask, q, kv)
        if unmasked is not None:
            return unmasked
    q_runs, kv_runs = q.runs, kv.runs
    steps = {run.step for run in (*q_runs, *kv_runs) if run.size > 1}
    if len(steps) > 1:
        # Stripes joined on one side only would leave nothing that is a band.
        q_runs, kv_runs = runs_apart(q.items), runs_apart(kv.items)
    return _kernels_of_runs(mask, q_runs, kv_runs)


def _unmasked_kernel(q: Operand, kv: Operand) -> Kernel:
    q_pieces, q_rows = q.whole
    kv_pieces, kv_rows = kv.whole
    return Kernel(q_pieces, q_rows, kv_pieces, kv_rows, _UNMASKED, q_rows * kv_rows)


def _unmasked_parts(mask: Mask, q: Operand, kv: Operand) -> list[Kernel] | None:
    """Return the kernel of the q rows that see the same kv rows without a mask, if that is all.

    This is the case of most remote blocks, and spares them the joining. None: there is more to it.
    """
    left, right = mask.left, mask.right
    first, last = q.first, q.last
    seen: list[Item] = []
    nearest, farthest = 0, 0
    for item in kv.items:
        _, start, step, size, _ = item[0]
        stop = start + step * (size - 1)
        if (right is None or start - last <= right) and (left is None or stop - first >= -left):
            nearest = min(nearest, start) if seen else start
            farthest = max(farthest, stop) if seen else stop
            seen.append(item)
    if not seen:
        return []
    result = []
    for item in q.items:
        _, start, step, size, _ = item[0]
        stop = start + step * (size - 1)
        if (right is None or farthest - start <= right) and (
            left is None or nearest - stop >= -left
        ):
            result.append(item)
        elif (right is None or nearest - stop <= right) and (
            left is None or farthest - start >= -left
        ):
            return None
    if not result:
        return []
    return [
        _unmasked_kernel(
            q if len(result) == len(q.items) else Operand(result),
            kv if len(seen) == len(kv.items) else Operand(seen),
        )
    ]


def _kernels_of_runs(mask: Mask, q_runs: list[Run], kv_runs: list[Run]) -> list[Kernel]:
    bands = [
        [band_between(mask, q.start, q.step, q.size, k.start, k.step, k.size) for k in kv_runs]
        for q in q_runs
    ]
    if len(q_runs) * len(kv_runs) > 1 and max(len(q_runs), len(kv_runs)) <= _MAX_JOINED_RUNS:
        band = _common_band(bands, q_runs, kv_runs)
        if band is not None:
            return [_trimmed(band, concatenate(q_runs), concatenate(kv_runs))]
    kernels = []
    unmasked: dict[tuple[int, ...], list[Run]] = {}
    for q, row in zip(q_runs, bands, strict=True):
        full = tuple(index for index, band in enumerate(row) if band == (None, None))
        if full:
            unmasked.setdefault(full, []).append(q)
        kernels += [
            _trimmed(band, q, kv)
            for kv, band in zip(kv_runs, row, strict=True)
            if band is not None and band != (None, None)
        ]
    for full, runs in unmasked.items():
        kv_items = [item for index in full for item in kv_runs[index].items]
        q_items = [item for run in runs for item in run.items]
        kernels.append(_unmasked_kernel(Operand(q_items), Operand(kv_items)))
    return kernels


def _common_band(
    bands: list[list[Band | None]], q_runs: list[Run], kv_runs: list[Run]
) -> Band | None:
    """Return the band that all runs put end to end have, if it is exact."""
    uppers: set[int] = set()
    lowers: set[int] = set()
    places = []
    q_offset = 0
    for q, row in zip(q_runs, bands, strict=True):
        kv_offset = 0
        for kv, band in zip(kv_runs, row, strict=True):
            apart = kv_offset - q_offset
            places.append((band, apart - q.size + 1, apart + kv.size - 1))
            if band is not None:
                uppers |= set() if band.upper is None else {band.upper + apart}
                lowers |= set() if band.lower is None else {band.lower + apart}
            kv_offset += kv.size
        q_offset += q.size
    if len(uppers) > 1 or len(lowers) > 1:
        return None
    upper, lower = next(iter(uppers), None), next(iter(lowers), None)
    for band, least, most in places:
        if band is None:
            if not ((upper is not None and least > upper) or (lower is not None and most < lower)):
                return None
        elif (band.upper is None and upper is not None and most > upper) or (
            band.lower is None and lower is not None and least < lower
        ):
            return None
    return Band(lower, upper)


def _trimmed(band: Band, q: Run, kv: Run) -> Kernel:
    """Return the kernel of two runs without the rows at their ends that see nothing."""
    lower, upper = band
    q_first = 0 if upper is None else max(0, -upper)
    q_stop = q.size if lower is None else min(q.size, kv.size - lower)
    kv_first = 0 if lower is None else max(0, q_first + lower)
    kv_stop = kv.size if upper is None else min(kv.size, q_stop + upper)
    q_rows, kv_rows = q_stop - q_first, kv_stop - kv_first
    shift = q_first - kv_first
    if upper is not None:
        upper = None if upper + shift >= kv_rows - 1 else upper + shift
    if lower is not None:
        lower = None if lower + shift <= 1 - q_rows else lower + shift
    band = Band(lower, upper)
    return Kernel(
        cut_pieces(q.pieces, q_first, q_stop),
        q_rows,
        cut_pieces(kv.pieces, kv_first, kv_stop),
        kv_rows,
        band,
        count_pairs(band, q_rows, kv_rows),
    )
