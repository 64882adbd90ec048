"""What one rank sends and receives before it computes, and what it then computes on. Pure.

This file has the vocabulary of the two ways (push.py, relay.py); results.py has the way back.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

from tokenring.blocks import Block, Direction, Kind, Span, Transfer
from tokenring.problem import RingProblem
from tokenring.runs import Operands


class Product(NamedTuple):
    """All pairs of some q rows with some kv rows, to be computed in one step."""

    step: int
    q: Operands
    kv: Operands
    heads: Span


class Finish(NamedTuple):
    """How a result that this rank makes of a remote block goes home."""

    step: int
    """The last step in which the block is computed on; the result leaves in the next."""
    home: Transfer
    """What leaves: to the owner, or with relayed kv to the next rank."""
    arriving: Transfer | None = None
    """The sum of the ranks before, to which this rank adds its part (relayed kv only)."""


ResultKey = tuple[Kind, int, int]
"""Results for one input block: of which kind, of whose rows, of which part."""


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


def transfer_of(
    problem: RingProblem, step: int, block: Block, src: int, dst: int, direction: Direction
) -> Transfer:
    """Return the transfer of a block, with its bytes."""
    kind, _, rows, (first, last), _, _, _ = block
    num_rows = 0
    for start, stop in rows:
        num_rows += stop - start
    num_bytes = problem.batch * num_rows * (last - first) * problem.unit_bytes[kind]
    return Transfer(step, block, src, dst, num_bytes, direction)
