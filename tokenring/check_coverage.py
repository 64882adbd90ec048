"""Whether a plan computes every visible pair of positions once, and no other. Pure."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import pairwise

from tokenring.blocks import Compute, Piece, RankPlan, Span
from tokenring.mask import count_pairs
from tokenring.problem import RingProblem
from tokenring.reach import join_spans


class PlanError(ValueError):
    """A plan that no engine could run to the right result: the planner that made it has a bug."""


_Place = tuple[Span, int, int, Compute]
"""Rows of an owner in a compute's q, operand row of the first, stride there, and the compute."""


def covers(whole: Iterable[Span], parts: Iterable[Span]) -> bool:
    """Return whether each part lies in one of the spans."""
    spans = tuple(whole)
    return all(any(a <= p.start and p.stop <= b for a, b in spans) for p in parts)


def check_coverage(problem: RingProblem, plans: Sequence[RankPlan], max_rows: int) -> None:
    """Compare, for each q row and head, the kv rows that are computed with those that are visible.

    Raises:
        PlanError: they differ, or a compute's counts are wrong.
    """
    places: dict[int, list[_Place]] = defaultdict(list)
    edges = {0, problem.heads_q}
    for plan in plans:
        for compute in plan.computes:
            _check_operands(problem, compute)
            edges |= set(compute.heads)
            for piece in compute.q:
                row = piece.offset
                for span in piece.rows:
                    places[piece.block.owner].append((span, row, piece.stride, compute))
                    row += span.size * piece.stride
    cuts = sorted(edges)
    heads = [Span(a, b) for a, b in pairwise(cuts)]
    for rank in range(problem.world_size):
        for row in _rows_to_check(problem, rank, places[rank], max_rows):
            _check_row(problem, rank, row, places[rank], heads)


def _check_operands(problem: RingProblem, compute: Compute) -> None:
    for pieces, num_rows in ((compute.q, compute.q_rows), (compute.kv, compute.kv_rows)):
        if num_rows < 1 or not _fills(pieces, num_rows):
            raise PlanError(f"the pieces do not fill {num_rows} rows once: {compute}")
    num_pairs = count_pairs(compute.band, compute.q_rows, compute.kv_rows)
    flops = num_pairs * problem.flops_per_pair * compute.heads.size * problem.batch
    if (compute.num_pairs, compute.flops) != (num_pairs, flops) or num_pairs < 1:
        raise PlanError(f"{num_pairs} pairs are {flops} FLOP: {compute}")


def _fills(pieces: Sequence[Piece], num_rows: int) -> bool:
    """Return whether the pieces fill rows 0..num_rows-1 of an operand once."""
    if all(piece.stride == 1 for piece in pieces):
        ends = sorted((piece.offset, piece.offset + piece.num_rows) for piece in pieces)
        edges = [0, *(edge for pair in ends for edge in pair), num_rows]
        return all(a == b for a, b in zip(edges[::2], edges[1::2], strict=True))
    places = [p.offset + p.stride * index for p in pieces for index in range(p.num_rows)]
    return sorted(places) == list(range(num_rows))


def _rows_to_check(
    problem: RingProblem,
    rank: int,
    places: Sequence[_Place],
    max_rows: int,
) -> list[int]:
    num_rows = problem.q_layout.num_rows(rank)
    if num_rows <= max_rows:
        return list(range(num_rows))
    chunk_edges = [edge for r in problem.q_rows[rank] for edge in (r.row, r.row + r.size)]
    edges = {edge for span, *_ in places for edge in span} | set(chunk_edges)
    near = {edge + offset for edge in edges for offset in (-1, 0, 1)}
    near |= set(range(0, num_rows, max(1, num_rows // max_rows)))
    return sorted(row for row in near if 0 <= row < num_rows)


def _check_row(
    problem: RingProblem,
    rank: int,
    row: int,
    places: Sequence[_Place],
    heads: Sequence[Span],
) -> None:
    needed = _visible(problem, rank, row)
    here = [place for place in places if place[0].start <= row < place[0].stop]
    for part in heads:
        seen: dict[int, list[Span]] = defaultdict(list)
        for span, first, stride, compute in here:
            if compute.heads.start <= part.start and part.stop <= compute.heads.stop:
                a = first + stride * (row - span.start)
                for owner, rows in _read(compute, a):
                    seen[owner].append(rows)
        joined = {owner: join_spans(spans) for owner, spans in seen.items()}
        where = f"q row {row} of rank {rank}, heads {part.start}:{part.stop}"
        if joined != needed:
            raise PlanError(f"{where} sees {needed} but {joined} is computed")
        for owner, spans in seen.items():
            if sum(s.size for s in spans) != sum(s.size for s in joined[owner]):
                raise PlanError(f"{where} is computed twice with rows of rank {owner}: {spans}")


def _visible(problem: RingProblem, rank: int, row: int) -> dict[int, tuple[Span, ...]]:
    """Return the kv rows of each rank that a q row sees."""
    item = next(r for r in problem.q_rows[rank] if r.row <= row < r.row + r.size)
    position = item.start + item.step * (row - item.row)
    left, right = problem.mask.left, problem.mask.right
    result: dict[int, tuple[Span, ...]] = {}
    for owner, items in enumerate(problem.kv_rows):
        spans = []
        for kv in items:
            if kv.sequence == item.sequence:
                apart = kv.start - position
                first = 0 if left is None else max(0, -((left + apart) // kv.step))
                last = kv.size - 1 if right is None else (right - apart) // kv.step
                stop = min(kv.size, last + 1)
                if first < stop:
                    spans.append(Span(kv.row + first, kv.row + stop))
        if spans:
            result[owner] = join_spans(spans)
    return result


def _read(compute: Compute, a: int) -> list[tuple[int, Span]]:
    """Return (owner, rows) of the kv rows that row a of a compute's q sees."""
    lower, upper = compute.band
    first = 0 if lower is None else max(0, a + lower)
    stop = compute.kv_rows if upper is None else min(compute.kv_rows, a + upper + 1)
    found = []
    for piece in compute.kv:
        begin = max(0, -((piece.offset - first) // piece.stride))
        end = min(piece.num_rows, -((piece.offset - stop) // piece.stride))
        found += [(piece.block.owner, span) for span in _pick(piece, begin, end)]
    return found


def _pick(piece: Piece, begin: int, end: int) -> list[Span]:
    """Return rows begin..end-1 of a piece, as the owner counts them."""
    result, done = [], 0
    for start, stop in piece.rows:
        a, b = max(start, start + begin - done), min(stop, start + end - done)
        if a < b:
            result.append(Span(a, b))
        done += stop - start
    return result
