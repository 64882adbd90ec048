"""The vocabulary of plans: what is moved, computed and merged, by which rank, in which step. Pure.

A `RankPlan` is all that an engine needs: it never looks at positions, partitions or strategies.

Rows. A rank's local tokens are its rows 0..n-1. Every range of rows below is in the owner's local
rows, every range of heads in heads of that tensor (KV heads for kv and dkv). One head of one row of
one batch entry is the unit of all bytes.

Steps. All ranks have the same steps 0..T. In step t a rank does, in this order:

    1. post the receives of the step (`arrivals`), each into its slot, then the sends (`sends`), in
       list order. Both take place while the step computes. A send carries an input or a result of
       an earlier step, or passes on what arrived by a transfer of an earlier step, for which it
       waits. For one pair of ranks, sends and arrivals come in the same order.
    2. run `computes` in order. A compute waits for what it reads, by transfers of earlier steps.
    3. run `merges` in order. A merge also reads what arrives by transfers of this very step.
    4. give back the slots whose `release_step` is this step, once the sends that read them are
       done.

A slot is taken again only in a later step, so that a sender needs at most the credit that its peer
gives at the end of an earlier step: with any order of messages the ranks cannot wait in a circle.

Data. An input block (role "input") is a part of a local tensor (where `producer` is this rank) or
lies in a slot. A relayed block may lose rows on its way: find a block by `Block.key`, then pick the
rows asked for, which are among those held. Results are made by computes and merges:

    forward   kind out: (out, lse), lse in fp32. A row that sees no key has out 0 and lse -inf.
    backward  computes read pack = (q, dout, lse, delta) with the lse and delta of the whole row,
              and make dq (`outputs`) and dkv (`kv_outputs`), partial sums.

A merge combines results, lse-weighted ("lse") or by adding ("sum") in fp32. An engine may fold the
inputs as they are made, in the listed order, which is the same in every run. Results stay in fp32
on their rank; a transfer carries them in the element size that its bytes say.

Example: q_push, causal, 2 ranks, 8 tokens in contiguous halves. Rank 1's q sees rank 0's kv fully:

    step  rank 0                                      rank 1
    0     compute q0[0:2] kv0[0:2], b - a <= 0        send q1[0:4] to 0; compute its first half
    1     compute q1[0:4] kv0[0:4], unmasked          -
    2     send out of q1 to 1; compute q0[2:4]        compute q1's second half; merge: rows 0:4 from
          kv0[0:4], b - a <= 2; merge                 its halves and from rank 0
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

Kind = Literal["q", "kv", "pack", "out", "dq", "dkv"]
Role = Literal["input", "partial", "returned", "merged"]
Direction = Literal["clockwise", "counterclockwise", "direct"]

# Records are tuples: a plan of 64 ranks makes tens of thousands of them, each in a fifth to a third
# of the time of a frozen dataclass.


class Span(NamedTuple):
    """The half-open range [start, stop) of rows or heads."""

    start: int
    stop: int

    @property
    def size(self) -> int:
        return self.stop - self.start


class Block(NamedTuple):
    """Some rows and heads of one tensor of one rank."""

    kind: Kind
    owner: int
    """The rank whose rows these are."""
    rows: tuple[Span, ...]
    """Ascending, apart from each other, of the owner's rows. Stored one after the other."""
    heads: Span
    producer: int
    """The rank that made the values: the owner for inputs, the computing rank for results."""
    role: Role
    """input; partial: the output of a compute; returned: what goes to the owner, one for each input
    that came; merged: what the owner has at the end."""
    part: int
    """Tells apart what has the same kind, owner, producer and role."""

    @property
    def key(self) -> tuple[Kind, int, int, Role, int]:
        """What identifies the block on a rank, whichever of its rows are there."""
        return (self.kind, self.owner, self.producer, self.role, self.part)

    @property
    def num_rows(self) -> int:
        return sum(stop - start for start, stop in self.rows)


class Piece(NamedTuple):
    """Rows of a block as rows of an operand: the i-th of them is row offset + stride * i there."""

    block: Block
    rows: tuple[Span, ...]
    """Of the block's owner; all of them are in the block."""
    offset: int
    stride: int

    @property
    def num_rows(self) -> int:
        return sum(stop - start for start, stop in self.rows)


class Band(NamedTuple):
    """Row a of q sees row b of kv iff lower <= b - a <= upper; None is no bound.

    Both count rows of the operands. (None, None) is an unmasked block, (None, 0) causal aligned at
    the top left, (None, kv_rows - q_rows) causal aligned at the bottom right.
    """

    lower: int | None
    upper: int | None


class Transfer(NamedTuple):
    """One message; equal on both sides."""

    step: int
    block: Block
    src: int
    dst: int
    num_bytes: int
    direction: Direction
    """clockwise: the sender's next rank; counterclockwise: its previous one, or, for a result on
    its way home against the direction of the inputs, as many ranks back as they came; direct: any
    rank."""


class Arrival(NamedTuple):
    """A transfer at its receiver."""

    transfer: Transfer
    slot: int
    """Where it is put: index into RankPlan.slots."""
    release_step: int
    """The last step that reads it."""


class Compute(NamedTuple):
    """Attention of some q rows over some kv rows: one kernel call, or one for each batch entry."""

    step: int
    rank: int
    q: tuple[Piece, ...]
    """q (forward) or pack (backward); together the pieces fill rows 0..q_rows-1 once."""
    kv: tuple[Piece, ...]
    q_rows: int
    kv_rows: int
    heads: Span
    """Query heads."""
    kv_heads: Span
    """The KV heads that these read: whole groups of query heads, or a part of one group."""
    band: Band
    num_pairs: int
    """How many (q row, kv row) pairs see each other, for one head."""
    flops: int
    """Over all heads and batch entries."""
    outputs: tuple[Block, ...]
    """out or dq, one for each piece of q, with its rows."""
    kv_outputs: tuple[Block, ...]
    """dkv, one for each piece of kv; empty in the forward."""


class Segment(NamedTuple):
    """A rectangle of a merge, in which every input has every row and head."""

    rows: Span
    heads: Span
    inputs: tuple[Block, ...]
    """In the order in which they are added; none: out is 0 and lse -inf, or the gradient is 0."""


class Merge(NamedTuple):
    """Results combined into one. The segments cover the output once."""

    step: int
    rank: int
    op: Literal["lse", "sum"]
    output: Block
    segments: tuple[Segment, ...]

    @property
    def inputs(self) -> tuple[Block, ...]:
        """Every input once."""
        return tuple(dict.fromkeys(b for segment in self.segments for b in segment.inputs))

    @property
    def is_copy(self) -> bool:
        """Whether no two inputs meet: rows are put together, nothing is added."""
        return all(len(segment.inputs) <= 1 for segment in self.segments)


class Step(NamedTuple):
    """What one rank does in one step; see the head of the file."""

    index: int  # type: ignore[assignment]  # hides tuple.index
    sends: tuple[Transfer, ...]
    arrivals: tuple[Arrival, ...]
    computes: tuple[Compute, ...]
    merges: tuple[Merge, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class RankPlan:
    """All steps of one rank."""

    rank: int
    steps: tuple[Step, ...]
    slots: tuple[int, ...]
    """Bytes of each receive slot. Two arrivals of one slot never overlap in time."""

    @property
    def computes(self) -> tuple[Compute, ...]:
        return tuple(compute for step in self.steps for compute in step.computes)

    @property
    def merges(self) -> tuple[Merge, ...]:
        return tuple(merge for step in self.steps for merge in step.merges)

    @property
    def sends(self) -> tuple[Transfer, ...]:
        return tuple(transfer for step in self.steps for transfer in step.sends)

    @property
    def arrivals(self) -> tuple[Arrival, ...]:
        return tuple(arrival for step in self.steps for arrival in step.arrivals)

    @property
    def bytes_sent(self) -> int:
        return sum(transfer.num_bytes for step in self.steps for transfer in step.sends)

    @property
    def flops(self) -> int:
        return sum(compute.flops for step in self.steps for compute in step.computes)
