"""Rows put together: runs of a sequence, and operands made of pieces of blocks. Pure."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from tokenring.blocks import Block, Piece, Span
from tokenring.reach import Rows, join_spans, local_spans

Item = tuple[Rows, Block]
"""Rows to read, and the block they are read from."""


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
    items = sorted(items, key=lambda item: item[0].start)
    stripes = _interleave(items) if len(items) > 1 else None
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


def in_any_order(items: Iterable[Item]) -> tuple[tuple[Piece, ...], int]:
    """Return the rows of all items, those of a block together and ascending."""
    found: dict[tuple[int, int], tuple[Block, list[Span]]] = {}
    for (_, _, _, size, row), block in items:
        same = found.get((block.owner, block.part))
        if same is None:
            found[block.owner, block.part] = (block, [Span(row, row + size)])
        else:
            same[1].append(Span(row, row + size))
    pieces, offset = [], 0
    for block, spans in found.values():
        rows = tuple(spans) if len(spans) == 1 else join_spans(spans)
        pieces.append(Piece(block, rows, offset, 1))
        for start, stop in rows:
            offset += stop - start
    return tuple(pieces), offset
