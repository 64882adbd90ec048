"""Which rows of one rank some other ranks need: what a transfer is trimmed to. Pure.

A position x is needed iff y + low <= x <= y + high for a position y of those who ask. Evenly spaced
y ask for one interval of x, or, where they are further apart than their intervals are wide, for a
comb. What several ranks ask for is joined where it touches: for nearly all masks and partitions one
interval of each sequence, however many ranks ask.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from tokenring.blocks import Span

Comb = tuple[int, int, int, int]
"""(first, stop, step, count): the x with first + step * j <= x < stop + step * j, 0 <= j < count.
An interval has count 1."""

Reach = Mapping[int, tuple[Comb, ...]]
"""What some ranks ask for, by sequence. Never changed: joining makes a new one."""

_END = 1 << 62
"""Beyond every position: where a mask has no bound."""
_EVERYTHING: tuple[Comb, ...] = ((-_END, _END, 1, 1),)


class Rows(NamedTuple):
    """Equally spaced local rows of one sequence; a chunk, or what is left of it."""

    sequence: int
    start: int
    """Position of the first."""
    step: int
    size: int
    row: int
    """Local row of the first."""


def asked_by(rows: Iterable[Rows], low: int | None, high: int | None) -> Reach:
    """Return the x with y + low <= x <= y + high for some y of these rows; None is no bound."""
    if low is None and high is None:
        return {item[0]: _EVERYTHING for item in rows}
    found: dict[int, tuple[Comb, ...]] = {}
    for sequence, start, step, size, _ in rows:
        first = -_END if low is None else start + low
        stop = _END if high is None else start + step * (size - 1) + high + 1
        comb = (first, stop, 1, 1)
        if low is not None and high is not None and size > 1 and high - low + 1 < step:
            comb = (first, start + high + 1, step, size)
        have = found.get(sequence)
        found[sequence] = (comb,) if have is None else _with(have, comb)
    return found


def join_reaches(reach: Reach, other: Reach) -> Reach:
    """Return what either asks for; one of them itself where the other adds nothing to it."""
    if reach is other:
        return reach
    result: dict[int, tuple[Comb, ...]] | None = None
    is_other = True
    for sequence, combs in other.items():
        have = reach.get(sequence)
        if have is None:
            joined = combs
        else:
            joined = have
            for comb in combs:
                joined = _with(joined, comb)
            is_other = is_other and joined == combs
            if joined is have:
                continue
        if result is None:
            result = dict(reach)
        result[sequence] = joined
    if result is None:
        return reach
    return other if is_other and len(result) == len(other) else result


def _with(combs: tuple[Comb, ...], new: Comb) -> tuple[Comb, ...]:
    """Return the combs with one more, joined to what it touches; the same tuple if it is in one."""
    first, stop, step, count = new
    apart = []
    for have in combs:
        its_first, its_stop, its_step, its_count = have
        is_like = count == its_count and (count == 1 or step == its_step)
        if not is_like or its_first > stop or first > its_stop:
            apart.append(have)
        elif its_first <= first and stop <= its_stop:
            return combs
        else:
            first, stop = min(first, its_first), max(stop, its_stop)
    if count > 1 and stop - first >= step:
        # No gaps are left.
        return _with(tuple(apart), (first, stop + step * (count - 1), 1, 1))
    apart.append((first, stop, step, count))
    return tuple(apart)


def needed_rows(rows: tuple[Rows, ...], reach: Reach) -> tuple[Rows, ...]:
    """Return what of the rows is asked for, in order; the same tuple if all of it is."""
    result: list[Rows] = []
    is_all = True
    for item in rows:
        sequence, start, step, size, _ = item
        combs = reach.get(sequence, ())
        for first, stop, _, count in combs:
            if count == 1 and first <= start and start + step * (size - 1) < stop:
                result.append(item)
                break
        else:
            parts = [span for comb in combs if (span := _rows_in(item, comb)) is not None]
            parts = parts if len(parts) < 2 else list(join_spans(parts))
            is_all = is_all and parts == [(0, size)]
            result += [part_of(item, first, stop) for first, stop in parts]
    return rows if is_all else tuple(result)


def _rows_in(item: Rows, comb: Comb) -> Span | None:
    """Return which of an item's rows a comb asks for, counted from the first."""
    _, start, step, size, _ = item
    first, stop, its_step, count = comb
    if count == 1:
        begin, end = -((start - first) // step), -((start - stop) // step)
    else:
        # Rows as far apart as the teeth, or one row.
        shift, rest = divmod(start - first, its_step)
        begin, end = -shift, count - shift if rest < stop - first else -shift
    begin, end = max(begin, 0), min(end, size)
    return Span(begin, end) if begin < end else None


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
    """Return the local rows that items cover; there is at least one."""
    _, _, _, size, row = rows[0]
    if len(rows) == 1:
        return (Span(row, row + size),)
    if len(rows) == 2:
        _, _, _, next_size, next_row = rows[1]
        if next_row == row + size:
            return (Span(row, next_row + next_size),)
    return join_spans([Span(row, row + size) for _, _, _, size, row in rows])
