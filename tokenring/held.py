"""Blocks as tensors: what a rank holds, and how it travels.

Every part is [batch, rows, heads, ..]; lse and delta end there. The parts of each kind, in order:

    q      q                          out    lse, out
    kv     k, v                       dq     dq
    pack   lse, delta, q, dout        dkv    dk, dv

fp32 parts come first, so that in a message without gaps every part is aligned.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tokenring.blocks import Block, Kind, Piece, Span
from tokenring.partial import Partial


@dataclass(frozen=True, slots=True)
class Held:
    """Rows and heads of a block, one after the other in each part."""

    block: Block
    parts: tuple[Tensor, ...]

    def select(self, rows: Sequence[Span], heads: Span) -> tuple[Tensor, ...]:
        """Return the parts of some rows (of the owner) and heads; views where the rows adjoin."""
        first = heads.start - self.block.heads.start
        spans = storage_spans(self.block.rows, rows)
        columns = slice(first, first + heads.size)
        if len(spans) == 1:
            start, stop = spans[0]
            return tuple(part[:, start:stop, columns] for part in self.parts)
        return tuple(
            torch.cat([part[:, start:stop, columns] for start, stop in spans], dim=1)
            for part in self.parts
        )


@dataclass(frozen=True, slots=True)
class HeldOut:
    """A block of outputs as partials, which the last merge combines in one go.

    Their rows count in the block's, as stored.
    """

    block: Block
    partials: tuple[Partial, ...]

    def within(self, output: Block) -> Iterator[Partial]:
        """Yield the partials with rows and heads counted in another block that has them all."""
        base = 0
        head_start = self.block.heads.start - output.heads.start
        for span in self.block.rows:
            (target,) = storage_spans(output.rows, (span,))
            for partial in self.partials:
                first = max(partial.row_start, base)
                stop = min(partial.row_start + partial.lse.shape[1], base + span.size)
                if first < stop:
                    rows = slice(first - partial.row_start, stop - partial.row_start)
                    yield Partial(
                        partial.out[:, rows],
                        partial.lse[:, rows],
                        row_start=target.start + first - base,
                        head_start=head_start + partial.head_start,
                    )
            base += span.size


def storage_spans(held: Sequence[Span], wanted: Sequence[Span]) -> list[Span]:
    """Return where wanted rows lie when the held rows are stored one after the other.

    Neighbours are joined. Example: held 0:4 and 8:12, wanted 2:4 and 8:9 is the one span 2:5.
    """
    found: list[Span] = []
    for rows in wanted:
        base = 0
        for span in held:
            start, stop = max(rows.start, span.start), min(rows.stop, span.stop)
            if start < stop:
                place = Span(base + start - span.start, base + stop - span.start)
                if found and found[-1].stop == place.start:
                    place = Span(found.pop().start, place.stop)
                found.append(place)
            base += span.size
    assert sum(span.size for span in found) == sum(span.size for span in wanted), (
        f"rows {tuple(wanted)} are not all among {tuple(held)}"
    )
    return found or [Span(0, 0)]


def lay_out(
    pieces: Sequence[tuple[Piece, tuple[Tensor, ...]]], num_rows: int
) -> tuple[Tensor, ...]:
    """Put the rows of several blocks where their pieces say: one operand of `num_rows` rows."""
    operand = tuple(
        part.new_empty((part.shape[0], num_rows, *part.shape[2:])) for part in pieces[0][1]
    )
    for piece, parts in pieces:
        for target, part in zip(operand, parts, strict=True):
            target[:, rows_of_piece(piece)] = part
    return operand


def rows_of_piece(piece: Piece) -> slice:
    """Return the rows of the operand that a piece fills."""
    stop = piece.offset + piece.stride * (piece.num_rows - 1) + 1
    return slice(piece.offset, stop, piece.stride)


def partials_of_piece(piece: Piece, partials: Sequence[Partial]) -> Iterator[Partial]:
    """Yield what belongs to one piece of the partials of its operand, in rows of the piece."""
    offset, stride = piece.offset, piece.stride
    for partial in partials:
        # The first row of the piece at or behind each end of the partial.
        first, stop = (
            min(max(-(-(row - offset) // stride), 0), piece.num_rows)
            for row in (partial.row_start, partial.row_start + partial.lse.shape[1])
        )
        if first < stop:
            start = offset + stride * first - partial.row_start
            rows = slice(start, start + stride * (stop - first - 1) + 1, stride)
            yield Partial(
                partial.out[:, rows],
                partial.lse[:, rows],
                row_start=first,
                head_start=partial.head_start,
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class WireFormat:
    """Shapes and dtypes of messages."""

    batch: int
    head_dim: int
    head_dim_v: int
    inputs: torch.dtype
    """q, k, v, dout."""
    sums: torch.dtype
    """lse, delta, and what is added up on the way: fp32, but fp64 for fp64."""
    out: torch.dtype
    """Partial outputs."""
    dq: torch.dtype
    dkv: torch.dtype

    def parts(self, kind: Kind) -> tuple[tuple[tuple[int, ...], torch.dtype], ...]:
        """Return width (empty for one number a row and head) and dtype of each part of a kind."""
        scalar = ((), self.sums)
        wide, wide_v = (self.head_dim,), (self.head_dim_v,)
        return {
            "q": ((wide, self.inputs),),
            "kv": ((wide, self.inputs), (wide_v, self.inputs)),
            "pack": (scalar, scalar, (wide, self.inputs), (wide_v, self.inputs)),
            "out": (scalar, (wide_v, self.out)),
            "dq": ((wide, self.dq),),
            "dkv": ((wide, self.dkv), (wide_v, self.dkv)),
        }[kind]

    def layout(self, block: Block) -> list[tuple[tuple[int, ...], torch.dtype]]:
        """Return shape and dtype of each part of a block's message."""
        return [
            ((self.batch, block.num_rows, block.heads.size, *width), dtype)
            for width, dtype in self.parts(block.kind)
        ]

    def encode(self, kind: Kind, parts: Sequence[Tensor]) -> list[Tensor]:
        """Return the parts in the dtypes in which they travel."""
        return [part.to(dtype) for part, (_, dtype) in zip(parts, self.parts(kind), strict=True)]
