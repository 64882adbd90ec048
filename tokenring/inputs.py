"""What one rank sends and receives before it computes, and what it then computes on. Pure.

This file has the vocabulary of the two ways (push.py, relay.py); results.py has the way back.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from tokenring.blocks import Block, Direction, Kind, Span, Transfer
from tokenring.problem import RingProblem
from tokenring.reach import Rows, local_spans
from tokenring.runs import Item


class Product(NamedTuple):
    """All pairs of some q rows with some kv rows, to be computed in one step."""

    step: int
    q: Sequence[Item]
    kv: Sequence[Item]
    heads: Span


class Finish(NamedTuple):
    """How a result that this rank makes of a remote block goes home."""

    step: int
    """The last step in which the block is computed on; the result leaves in the next."""
    home: Transfer
    """What leaves: to the owner, or with relayed kv to the next rank."""
    arriving: Transfer | None = None
    """The sum of the ranks before, to which this rank adds its part (relayed kv only)."""


class ResultKey(NamedTuple):
    """Results for one input block: of which kind, of whose rows, of which part."""

    kind: Kind
    owner: int
    part: int


@dataclass(slots=True)
class Inputs:
    """The exchange of one rank, in the making."""

    sends: list[Transfer] = field(default_factory=list)
    arrivals: list[tuple[Transfer, int]] = field(default_factory=list)
    """With the last step that reads each."""
    products: list[Product] = field(default_factory=list)
    finishes: dict[ResultKey, Finish] = field(default_factory=dict)
    homecoming: list[Transfer] = field(default_factory=list)
    """Results of other ranks for this one."""


def own_block(problem: RingProblem, kind: Kind, rank: int) -> Block:
    """Return the block of all that a rank holds of a tensor."""
    layout = problem.kv_layout if kind == "kv" else problem.q_layout
    heads = problem.heads_kv if kind == "kv" else problem.heads_q
    rows = (Span(0, layout.num_rows(rank)),)
    return Block(kind, rank, rows, Span(0, heads), rank, "input", 0)


def own_items(problem: RingProblem, kind: Kind, rank: int) -> list[Item]:
    """Return all rows of a rank, read from its own tensor."""
    block = own_block(problem, kind, rank)
    rows = problem.kv_rows if kind == "kv" else problem.q_rows
    return [(item, block) for item in rows[rank]]


def input_block(kind: Kind, owner: int, rows: Sequence[Rows], heads: Span, part: int = 0) -> Block:
    """Return the block of these rows of a rank's tensor."""
    return Block(kind, owner, local_spans(rows), heads, owner, "input", part)


def transfer_of(
    problem: RingProblem, step: int, block: Block, src: int, dst: int, direction: Direction
) -> Transfer:
    """Return the transfer of a block, with its bytes."""
    first, last = block.heads
    num_rows = 0
    for start, stop in block.rows:
        num_rows += stop - start
    num_bytes = problem.num_bytes(block.kind, num_rows, last - first)
    return Transfer(step, block, src, dst, num_bytes, direction)
