"""Which rows of one rank some other ranks need: what a transfer is trimmed to. Pure.

Row x is needed iff y + low <= x <= y + high for a position y of those who ask. Where only one of
the bounds is there, the first and last y of each sequence decide. Where both are, all runs of y
do.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from tokenring.blocks import Span


class Rows(NamedTuple):
    """Equally spaced local rows of one sequence; a chunk, or what is left of it."""

    sequence: int
    start: int
    """Position of the first."""
    step: int
    size: int
    row: int
    """Local row of the first."""


class Reach:
    """The positions that some ranks have, joined where they touch."""

    __slots__ = ("ends", "runs")

    def __init__(self, rows: Iterable[Rows] = (), *, has_runs: bool = True) -> None:
        """Take in rows; `has_runs` is for asking with both bounds, and costs time."""
        self.ends: dict[int, tuple[int, int]] = {}
        self.runs: dict[int, list[tuple[int, int, int]]] | None = {} if has_runs else None
        self.add(rows)

    def add(self, rows: Iterable[Rows]) -> None:
        """Take in more rows."""
        all_ends = self.ends
        for sequence, start, step, size, _ in rows:
            last = start + step * (size - 1)
            ends = all_ends.get(sequence)
            if ends is None:
                all_ends[sequence] = (start, last)
            elif start < ends[0]:
                all_ends[sequence] = (start, last if last > ends[1] else ends[1])
            elif last > ends[1]:
                all_ends[sequence] = (ends[0], last)
            if self.runs is not None:
                _add_run(self.runs.setdefault(sequence, []), start, last, step)


def _add_run(runs: list[tuple[int, int, int]], start: int, last: int, step: int) -> None:
    if step == 1:
        # At most two runs touch the new one: a list that is joined stays short.
        for run in [r for r in runs if r[2] == 1 and (r[1] + 1 == start or r[0] == last + 1)]:
            runs.remove(run)
            start, last = min(start, run[0]), max(last, run[1])
    runs.append((start, last, step))


def needed_rows(
    rows: Iterable[Rows], reach: Reach, low: int | None, high: int | None
) -> list[Rows]:
    """Return the rows x with y + low <= x <= y + high for some y of `reach`, in order."""
    if low is not None and high is not None:
        return _needed_between(rows, reach, low, high)
    result = []
    for item in rows:
        ends = reach.ends.get(item.sequence)
        if ends is None:
            continue
        _, start, step, size, _ = item
        if low is not None and ends[0] + low > start:
            first = -((start - ends[0] - low) // step)
            if first < size:
                result.append(part_of(item, first, size))
        elif high is not None and ends[1] + high < start + step * (size - 1):
            last = (ends[1] + high - start) // step + 1
            if last > 0:
                result.append(part_of(item, 0, last))
        else:
            result.append(item)
    return result


def _needed_between(rows: Iterable[Rows], reach: Reach, low: int, high: int) -> list[Rows]:
    result = []
    assert reach.runs is not None
    for item in rows:
        sequence, start, step, size, _ = item
        ends = reach.ends.get(sequence)
        if ends is None or ends[0] + low > start + step * (size - 1) or ends[1] + high < start:
            continue
        spans = []
        for run_start, run_last, run_step in reach.runs[sequence]:
            if run_step == 1 or run_step != step:
                # Without gaps, or (a single row against stripes) seen one at a time.
                first = -((start - run_start - low) // step)
                last = (run_last + high - start) // step
                if run_step != 1 and not _meets_stripe(
                    start, run_start, run_last, run_step, low, high
                ):
                    continue
            else:
                lower = -((start - run_start - low) // step)
                upper = (run_start + high - start) // step
                if lower > upper:
                    continue
                first, last = lower, (run_last - run_start) // step + upper
            first, last = max(first, 0), min(last, size - 1)
            if first <= last:
                spans.append(Span(first, last + 1))
        result += [part_of(item, span.start, span.stop) for span in join_spans(spans)]
    return result


def _meets_stripe(x: int, start: int, last: int, step: int, low: int, high: int) -> bool:
    """Return whether a y of start, start + step .. last has y + low <= x <= y + high."""
    first = max(0, -((start + high - x) // step))
    return start + step * first <= min(last, x - low)


def part_of(item: Rows, first: int, stop: int) -> Rows:
    """Return rows first..stop-1 of an item."""
    sequence, start, step, size, row = item
    if first == 0 and stop == size:
        return item
    count = stop - first
    return Rows(sequence, start + step * first, step if count > 1 else 1, count, row + first)


def join_spans(spans: Iterable[Span]) -> tuple[Span, ...]:
    """Return the same rows in order, in as few spans as possible."""
    result: list[Span] = []
    for span in sorted(spans):
        if result and span.start <= result[-1].stop:
            result[-1] = Span(result[-1].start, max(result[-1].stop, span.stop))
        else:
            result.append(span)
    return tuple(result)


def local_spans(rows: Sequence[Rows]) -> tuple[Span, ...]:
    """Return the local rows that items cover."""
    if not rows:
        return ()
    _, _, _, size, row = rows[0]
    if len(rows) == 1:
        return (Span(row, row + size),)
    _, _, _, next_size, next_row = rows[1]
    if len(rows) == 2 and next_row >= row + size:
        if next_row == row + size:
            return (Span(row, next_row + next_size),)
        return (Span(row, row + size), Span(next_row, next_row + next_size))
    return join_spans([Span(row, row + size) for _, _, _, size, row in rows])
