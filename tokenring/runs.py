"""Rows put together: runs of a sequence, and operands made of pieces of blocks. Pure."""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from tokenring.blocks import Block, Piece, Span
from tokenring.reach import Rows, join_spans, local_spans

Item = tuple[Rows, Block]
"""Rows to read, and the block they are read from."""


class Operand:
    """Rows of one sequence that products read on one side, and what follows from them alone.

    It is worked out once, however many products read them: a rank's own rows meet those of all.
    """

    __slots__ = ("_runs", "_whole", "first", "items", "last")

    def __init__(self, items: list[Item]) -> None:
        self.items = items
        _, start, step, size, _ = items[0][0]
        # First and last position.
        self.first, self.last = start, start + step * (size - 1)
        for (_, start, step, size, _), _ in items[1:]:
            last = start + step * (size - 1)
            if start < self.first:
                self.first = start
            if last > self.last:
                self.last = last
        self._whole: tuple[tuple[Piece, ...], int] | None = None
        self._runs: list[Run] | None = None

    @property
    def whole(self) -> tuple[tuple[Piece, ...], int]:
        """All rows in any order, those of a block together and ascending, and their number."""
        if self._whole is None:
            self._whole = in_any_order(self.items)
        return self._whole

    @property
    def runs(self) -> list["Run"]:
        """As few runs as the items make, by position."""
        if self._runs is None:
            self._runs = join_runs(self.items)
        return self._runs


Operands = Mapping[int, Operand]
"""Rows that products read on one side, by sequence."""


def operands_of(items: Iterable[Item]) -> Operands:
    """Return the rows to read as operands, sequences in the order in which they come."""
    by_sequence: dict[int, list[Item]] = {}
    for item in items:
        sequence = item[0][0]
        found = by_sequence.get(sequence)
        if found is None:
            by_sequence[sequence] = [item]
        else:
            found.append(item)
    return {sequence: Operand(found) for sequence, found in by_sequence.items()}


def read_both(one: Operands, other: Operands) -> Operands:
    """Return the operands of what is read in both, as one."""
    if not one or not other:
        return one or other
    result = dict(one)
    for sequence, operand in other.items():
        mine = result.get(sequence)
        result[sequence] = operand if mine is None else Operand(mine.items + operand.items)
    return result


class Run(NamedTuple):
    """Equally spaced positions of one sequence, and where their rows are."""

    start: int
    step: int
    size: int
    pieces: tuple[Piece, ...]
    items: Sequence[Item]


def runs_apart(items: list[Item]) -> list[Run]:
    """Return a run for each item."""
    return [
        Run(rows.start, rows.step, rows.size, (Piece(block, local_spans([rows]), 0, 1),), [item])
        for item in items
        for rows, block in (item,)
    ]


def join_runs(items: list[Item]) -> list[Run]:
    """Return as few runs as the items of one sequence make, by position."""
    if len(items) == 1:
        return runs_apart(items)
    items = sorted(items, key=lambda item: item[0].start)
    stripes = _interleave(items)
    if stripes is not None:
        return [stripes]
    runs: list[Run] = []
    first, run_step, run_size = 0, 0, 0
    pieces: list[Piece] = []
    begin = 0
    for index, ((_, start, step, size, row), block) in enumerate(items):
        if pieces and run_step == step and first + step * run_size == start:
            _append(pieces, Piece(block, (Span(row, row + size),), run_size, 1))
            run_size += size
            continue
        if pieces:
            runs.append(Run(first, run_step, run_size, tuple(pieces), items[begin:index]))
        first, run_step, run_size, begin = start, step, size, index
        pieces = [Piece(block, (Span(row, row + size),), 0, 1)]
    runs.append(Run(first, run_step, run_size, tuple(pieces), items[begin:]))
    return runs


def _interleave(items: list[Item]) -> Run | None:
    """Return the one run that stripes form which start equally far apart and are complete."""
    count, step = len(items), items[0][0].step
    first, last = items[0][0], items[-1][0]
    if step == 1 or step % count or not first.size - 1 <= last.size <= first.size:
        return None
    apart = step // count
    pieces = []
    for index, ((_, start, own_step, size, row), block) in enumerate(items):
        is_stripe = own_step == step or size == 1
        if not is_stripe or start != first.start + index * apart or size > first.size:
            return None
        if index and size > items[index - 1][0].size:
            return None
        pieces.append(Piece(block, (Span(row, row + size),), index, count))
    size = sum(item[0].size for item in items)
    return Run(first.start, apart, size, tuple(pieces), items)


def _append(pieces: list[Piece], new: Piece) -> None:
    """Put one more piece behind the others, joined to the last if of the same block."""
    last = pieces[-1]
    if (
        last.block.owner != new.block.owner
        or last.block != new.block
        or (last.stride, new.stride) != (1, 1)
        or last.rows[-1].stop > new.rows[0].start
    ):
        pieces.append(new)
        return
    rows = last.rows
    if rows[-1].stop == new.rows[0].start:
        rows = (*rows[:-1], Span(rows[-1].start, new.rows[0].stop), *new.rows[1:])
    else:
        rows = (*rows, *new.rows)
    pieces[-1] = Piece(last.block, rows, last.offset, 1)


def concatenate(runs: list[Run]) -> Run:
    """Return the runs put end to end; the positions of all but the first are lost."""
    if len(runs) == 1:
        return runs[0]
    pieces = list(runs[0].pieces)
    size = runs[0].size
    for run in runs[1:]:
        for piece in run.pieces:
            _append(pieces, piece._replace(offset=piece.offset + size))
        size += run.size
    return Run(runs[0].start, runs[0].step, size, tuple(pieces), ())


def cut_pieces(pieces: tuple[Piece, ...], first: int, stop: int) -> tuple[Piece, ...]:
    """Return the pieces that fill rows first..stop-1 of an operand, counted from `first`."""
    result = []
    for block, rows, offset, stride in pieces:
        size = sum(b - a for a, b in rows)
        begin = max(0, -((offset - first) // stride))
        end = min(size, -((offset - stop) // stride))
        if begin >= end:
            continue
        if begin or end < size:
            rows = _rows_between(rows, begin, end)
        result.append(Piece(block, rows, offset + stride * begin - first, stride))
    return tuple(result)


def _rows_between(rows: tuple[Span, ...], begin: int, end: int) -> tuple[Span, ...]:
    result, done = [], 0
    for start, stop in rows:
        a, b = max(start, start + begin - done), min(stop, start + end - done)
        if a < b:
            result.append(Span(a, b))
        done += stop - start
    return tuple(result)


def in_any_order(items: Sequence[Item]) -> tuple[tuple[Piece, ...], int]:
    """Return the rows of all items, those of a block together and ascending, and their number."""
    if len(items) == 1:
        (_, _, _, size, row), block = items[0]
        return (Piece(block, (Span(row, row + size),), 0, 1),), size
    found: dict[tuple[int, int], tuple[Block, list[Span]]] = {}
    for (_, _, _, size, row), block in items:
        key = (block[1], block[6])  # owner and part
        same = found.get(key)
        if same is None:
            found[key] = (block, [Span(row, row + size)])
        else:
            same[1].append(Span(row, row + size))
    pieces, offset = [], 0
    for block, spans in found.values():
        rows = tuple(spans) if len(spans) == 1 else join_spans(spans)
        pieces.append(Piece(block, rows, offset, 1))
        for start, stop in rows:
            offset += stop - start
    return tuple(pieces), offset
