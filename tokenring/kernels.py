"""Few large kernels for a set of q rows over a set of kv rows. Pure.

Rows that follow each other in a sequence are joined to runs, also across owners (and the stripes of
a complete set are interleaved to one run). Between two runs the mask is a band. What sees each
other without a mask is put in one kernel however far apart, so that a rank has one kernel for all
q rows above it and one for all below.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from tokenring.blocks import Band, Piece
from tokenring.mask import Mask, band_between, count_pairs
from tokenring.runs import Item, Run, concatenate, cut_pieces, in_any_order, join_runs, runs_apart

# Runs that are tried as one band: beyond this the test would cost more than the kernels it saves.
_MAX_JOINED_RUNS = 4


class Kernel(NamedTuple):
    """One attention call; becomes a Compute when its outputs are named."""

    q: tuple[Piece, ...]
    q_rows: int
    kv: tuple[Piece, ...]
    kv_rows: int
    band: Band
    num_pairs: int


def group_kernels(mask: Mask, q_items: Sequence[Item], kv_items: Sequence[Item]) -> list[Kernel]:
    """Return kernels that compute every visible pair of the two sets once, and no other."""
    kernels = []
    q_of, kv_of = _by_sequence(q_items), _by_sequence(kv_items)
    for sequence, q_part in q_of.items():
        kv_part = kv_of.get(sequence)
        if not kv_part:
            continue
        unmasked = _unmasked_parts(mask, q_part, kv_part)
        if unmasked is not None:
            kernels += [_unmasked_kernel(*unmasked)] if unmasked[0] else []
            continue
        q_runs, kv_runs = join_runs(q_part), join_runs(kv_part)
        steps = {run.step for run in (*q_runs, *kv_runs) if run.size > 1}
        if mask != Mask(None, None) and len(steps) > 1:
            # Stripes joined on one side only would leave nothing that is a band.
            q_runs, kv_runs = runs_apart(q_part), runs_apart(kv_part)
        kernels += _kernels_of_sequence(mask, q_runs, kv_runs)
    return kernels


def _unmasked_parts(
    mask: Mask, q_items: list[Item], kv_items: list[Item]
) -> tuple[list[Item], list[Item]] | None:
    """Return the q rows that see the same kv rows without a mask, and these, if that is all.

    This is the case of most remote blocks, and spares them the joining. None: there is more to it.
    """
    left, right = mask.left, mask.right
    if left is None and right is None:
        return q_items, kv_items
    first, last = _ends(q_items)
    seen = [
        item
        for item, (start, stop) in ((item, _ends((item,))) for item in kv_items)
        if (right is None or start - last <= right) and (left is None or stop - first >= -left)
    ]
    if not seen:
        return [], []
    nearest, farthest = _ends(seen)
    result = []
    for item in q_items:
        start, stop = _ends((item,))
        if (right is None or farthest - start <= right) and (
            left is None or nearest - stop >= -left
        ):
            result.append(item)
        elif not (
            (right is not None and nearest - stop > right)
            or (left is not None and farthest - start < -left)
        ):
            return None
    return (result, seen) if result else ([], [])


def _ends(items: Sequence[Item]) -> tuple[int, int]:
    """Return the first and the last position."""
    _, start, step, size, _ = items[0][0]
    stop = start + step * (size - 1)
    for (_, first, step, size, _), _ in items[1:]:
        start, stop = min(start, first), max(stop, first + step * (size - 1))
    return start, stop


def _unmasked_kernel(q_items: Iterable[Item], kv_items: Iterable[Item]) -> Kernel:
    q_pieces, q_rows = in_any_order(q_items)
    kv_pieces, kv_rows = in_any_order(kv_items)
    return Kernel(q_pieces, q_rows, kv_pieces, kv_rows, Band(None, None), q_rows * kv_rows)


def _by_sequence(items: Sequence[Item]) -> dict[int, list[Item]]:
    result: dict[int, list[Item]] = {}
    for item in items:
        result.setdefault(item[0].sequence, []).append(item)
    return result


def _kernels_of_sequence(mask: Mask, q_runs: list[Run], kv_runs: list[Run]) -> list[Kernel]:
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
        kernels.append(_unmasked_kernel([item for run in runs for item in run.items], kv_items))
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
