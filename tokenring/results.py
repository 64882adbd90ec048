"""What becomes of a rank's results: named, merged for the way home, merged at the end. Pure."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, NamedTuple

from tokenring.blocks import Block, Compute, Kind, Merge, Piece, Segment, Span, Transfer
from tokenring.inputs import Finish, Inputs, ResultKey
from tokenring.kernels import Kernel
from tokenring.problem import RingProblem

Planned = tuple[int, Span, Kernel]
"""A step, query heads, and a kernel that computes them then."""


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
    finishes = inputs.finishes
    # Of each remote block, how many pieces its result is made of: the sum of others is one more.
    num_parts = {key: int(finish[2] is not None) for key, finish in finishes.items()}
    for _, _, kernel in planned:
        keys = [(out_kind, piece[0][1], piece[0][6]) for piece in kernel[0]]
        if is_backward:
            keys += [("dkv", piece[0][1], piece[0][6]) for piece in kernel[2]]
        for key in keys:
            if key in num_parts:
                num_parts[key] += 1
    made: dict[ResultKey, list[Block]] = {}
    counts: dict[tuple[Kind, int], int] = {}

    def named(kind: Kind, pieces: tuple[Piece, ...], heads: Span) -> tuple[Block, ...]:
        outputs = []
        for block, rows, _, _ in pieces:
            owner = block[1]
            key = (kind, owner, block[6])
            if num_parts.get(key) == 1:
                outputs.append(finishes[key][1][1])  # the block that goes home
                continue
            number = counts.get((kind, owner), 0)
            counts[kind, owner] = number + 1
            partial = Block(kind, owner, rows, heads, rank, "partial", number)
            made.setdefault(key, []).append(partial)
            outputs.append(partial)
        return tuple(outputs)

    computes = []
    pair_flops = problem.flops_per_pair * problem.batch
    kv_heads_of = {heads: problem.kv_heads_of(heads) for heads in {it[1] for it in planned}}
    for step, heads, (q, q_rows, kv, kv_rows, band, num_pairs) in planned:
        kv_heads = kv_heads_of[heads]
        computes.append(
            Compute(
                step, rank, q, kv, q_rows, kv_rows, heads, kv_heads, band, num_pairs,
                num_pairs * pair_flops * heads.size,
                named(out_kind, q, heads),
                named("dkv", kv, kv_heads) if is_backward else (),
            )
        )  # fmt: skip
    op: Literal["lse", "sum"] = "sum" if is_backward else "lse"
    merges, sends = [], []
    for key, finish in inputs.finishes.items():
        if num_parts[key] != 1 or finish.arriving is not None:
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
    arrived = sorted(homecoming, key=lambda t: (t[0], t[2], t[1][6]))  # step, sender, part
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
                block for key, own in made.items() if key[:2] == (kind, rank) for block in own
            ]
            blocks += [transfer.block for transfer in arrived if transfer.block.kind == kind]
            segments = cut_segments(output, blocks)
            merges.append(Merge(step=step, rank=rank, op=op, output=output, segments=segments))
    return merges


def cut_segments(output: Block, inputs: Sequence[Block]) -> tuple[Segment, ...]:
    """Return the rectangles of the output in which each input has all rows and heads or none."""
    everywhere = tuple(inputs)
    if all([block[2] == output[2] and block[3] == output[3] for block in inputs]):
        return tuple([Segment(rows, output.heads, everywhere) for rows in output.rows])
    segments: list[Segment] = []
    for heads, present in _by_part(output.heads, [(block, (block[3],)) for block in inputs]):
        first = len(segments)
        with_rows = [(block, block[2]) for block in present]
        for rows in output.rows:
            for part, here in _by_part(rows, with_rows):
                if len(segments) > first:
                    last = segments[-1]
                    if last.rows.stop == part.start and last.inputs == here:
                        segments[-1] = Segment(Span(last.rows.start, part.stop), heads, here)
                        continue
                segments.append(Segment(part, heads, here))
    return tuple(segments)


def _by_part(
    whole: Span, inputs: Sequence[tuple[Block, tuple[Span, ...]]]
) -> Iterator[tuple[Span, tuple[Block, ...]]]:
    """Yield the parts of a range that each block has all or nothing of, with those that have.

    Args:
        whole: a range of rows or heads.
        inputs: blocks, and what each has of them.
    """
    start, stop = whole
    edges = {edge for spans in {it[1] for it in inputs} for span in spans for edge in span}
    cuts = [start, *sorted([edge for edge in edges if start < edge < stop]), stop]
    index = {cut: place for place, cut in enumerate(cuts)}
    having: list[list[Block]] = [[] for _ in cuts[1:]]
    for block, spans in inputs:
        for a, b in spans:
            if a < stop and b > start:
                for place in range(index[max(a, start)], index[min(b, stop)]):
                    having[place].append(block)
    for place, blocks in enumerate(having):
        yield Span(cuts[place], cuts[place + 1]), tuple(blocks)
