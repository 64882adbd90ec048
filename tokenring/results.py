"""What becomes of a rank's results: named, merged for the way home, merged at the end. Pure."""

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Literal, NamedTuple

from tokenring.blocks import Block, Compute, Kind, Merge, Segment, Span, Transfer
from tokenring.inputs import Finish, Inputs, ResultKey
from tokenring.kernels import Kernel
from tokenring.problem import RingProblem


class Planned(NamedTuple):
    """A kernel with its place."""

    step: int
    heads: Span
    kernel: Kernel


class Results(NamedTuple):
    computes: list[Compute]
    merges: list[Merge]
    sends: list[Transfer]


def name_results(
    problem: RingProblem, rank: int, planned: Sequence[Planned], inputs: Inputs, last_step: int
) -> Results:
    """Return the computes with their outputs, and all that is done with these.

    Results for a remote block leave in the step after its last computation, as one block: of one
    compute where that has made all of it, else of a merge. The others are merged in `last_step`.
    """
    out_kind, is_backward = problem.out_kind, problem.direction == "backward"
    pieces_of: dict[ResultKey, int] = {}
    keys: list[tuple[list[ResultKey], list[ResultKey]]] = []
    for _, _, kernel in planned:
        q_keys = [ResultKey(out_kind, p.block.owner, p.block.part) for p in kernel.q]
        kv_keys = (
            [ResultKey("dkv", p.block.owner, p.block.part) for p in kernel.kv]
            if is_backward
            else []
        )
        for key in (*q_keys, *kv_keys):
            pieces_of[key] = pieces_of.get(key, 0) + 1
        keys.append((q_keys, kv_keys))
    alone = {
        key
        for key, finish in inputs.finishes.items()
        if pieces_of.get(key) == 1 and finish.arriving is None
    }
    made: dict[ResultKey, list[Block]] = {}
    counts: dict[tuple[Kind, int], int] = {}

    def name(key: ResultKey, rows: tuple[Span, ...], heads: Span) -> Block:
        if key in alone:
            block = inputs.finishes[key].home.block
        else:
            number = counts.get((key.kind, key.owner), 0)
            counts[key.kind, key.owner] = number + 1
            block = Block(key.kind, key.owner, rows, heads, rank, "partial", number)
        made.setdefault(key, []).append(block)
        return block

    computes = []
    for (step, heads, kernel), (q_keys, kv_keys) in zip(planned, keys, strict=True):
        kv_heads = problem.kv_heads_of(heads)
        computes.append(
            Compute(
                step=step,
                rank=rank,
                q=kernel.q,
                kv=kernel.kv,
                q_rows=kernel.q_rows,
                kv_rows=kernel.kv_rows,
                heads=heads,
                kv_heads=kv_heads,
                band=kernel.band,
                num_pairs=kernel.num_pairs,
                flops=problem.flops_per_pair * kernel.num_pairs * heads.size * problem.batch,
                outputs=tuple(
                    name(key, piece.rows, heads)
                    for key, piece in zip(q_keys, kernel.q, strict=True)
                ),
                kv_outputs=tuple(
                    name(key, piece.rows, kv_heads)
                    # The forward has no keys for them.
                    for key, piece in zip(kv_keys, kernel.kv, strict=False)
                ),
            )
        )
    op: Literal["lse", "sum"] = "sum" if is_backward else "lse"
    merges, sends = [], []
    for key, finish in inputs.finishes.items():
        if key not in alone:
            merges.append(_merge_home(rank, op, finish, made.get(key, [])))
        sends.append(finish.home)
    merges += _final_merges(problem, rank, op, last_step, made, inputs.homecoming)
    return Results(computes, merges, sends)


def _merge_home(rank: int, op: Literal["lse", "sum"], finish: Finish, made: list[Block]) -> Merge:
    output = finish.home.block
    arriving = [] if finish.arriving is None else [finish.arriving.block]
    segments = cut_segments(output, [*arriving, *made])
    return Merge(step=finish.step, rank=rank, op=op, output=output, segments=segments)


def _final_merges(
    problem: RingProblem,
    rank: int,
    op: Literal["lse", "sum"],
    step: int,
    made: dict[ResultKey, list[Block]],
    homecoming: Iterable[Transfer],
) -> list[Merge]:
    """Return the merges of all that there is for this rank's own rows, in one fixed order.

    Own results come first, in the order in which they are made, then those of others by the step of
    their coming and the rank that made them.
    """
    arrived = sorted(homecoming, key=lambda t: (t.step, t.src, t.block.part))
    outputs: list[tuple[Kind, int, int]] = [
        (problem.out_kind, problem.q_layout.num_rows(rank), problem.heads_q)
    ]
    if problem.direction == "backward":
        outputs.append(("dkv", problem.kv_layout.num_rows(rank), problem.heads_kv))
    merges = []
    for kind, num_rows, num_heads in outputs:
        if num_rows:
            output = Block(kind, rank, (Span(0, num_rows),), Span(0, num_heads), rank, "merged", 0)
            blocks = [
                block
                for key, own in made.items()
                if key.kind == kind and key.owner == rank
                for block in own
            ]
            blocks += [transfer.block for transfer in arrived if transfer.block.kind == kind]
            segments = cut_segments(output, blocks)
            merges.append(Merge(step=step, rank=rank, op=op, output=output, segments=segments))
    return merges


def cut_segments(output: Block, inputs: Sequence[Block]) -> tuple[Segment, ...]:
    """Return the rectangles of the output in which each input has all rows and heads or none."""
    head_edges = _edges(output.heads, [block.heads for block in inputs])
    segments: list[Segment] = []
    for heads in head_edges:
        present = [
            block
            for block in inputs
            if block.heads.start <= heads.start and heads.stop <= block.heads.stop
        ]
        first = len(segments)
        for rows in output.rows:
            for part in _edges(rows, [span for block in present for span in block.rows]):
                here = tuple(block for block in present if _has(block.rows, part))
                if len(segments) > first:
                    last = segments[-1]
                    if last.rows.stop == part.start and last.inputs == here:
                        segments[-1] = Segment(Span(last.rows.start, part.stop), heads, here)
                        continue
                segments.append(Segment(part, heads, here))
    return tuple(segments)


def _edges(whole: Span, parts: Iterable[Span]) -> list[Span]:
    """Return `whole` cut at every edge of a part."""
    start, stop = whole
    edges = {edge for part in parts for edge in part if start < edge < stop}
    cuts = [start, *sorted(edges), stop]
    return [Span(a, b) for a, b in pairwise(cuts) if a < b]


def _has(rows: tuple[Span, ...], part: Span) -> bool:
    first, last = part
    start, stop = rows[0]
    if start <= first and last <= stop:
        return True
    return len(rows) > 1 and any(a <= first and last <= b for a, b in rows[1:])
