"""Documents packed into rows of one length. Pure.

A row is full: a document that does not fit goes on in the next row, where its rest is a document of
its own. Nothing is padded, nothing dropped.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

MarkT = TypeVar("MarkT")


@dataclass(frozen=True, slots=True)
class Chunk(Generic[MarkT]):
    """Tokens of a document, and a mark of where they come from."""

    mark: MarkT
    tokens: tuple[int, ...]
    ends_document: bool


@dataclass(frozen=True, slots=True)
class PackedRow(Generic[MarkT]):
    """One row, and where the next one begins."""

    tokens: tuple[int, ...]
    lengths: tuple[int, ...]
    """Of its documents, in order; their sum is the row's length."""
    next_mark: MarkT
    """Of the chunk in which the next row begins."""
    next_token: int
    """How many of that chunk's tokens have been used."""

    @property
    def num_learned(self) -> int:
        """How many tokens are predicted: all but each document's first."""
        return len(self.tokens) - len(self.lengths)


@dataclass(slots=True)
class _Row:
    tokens: list[int] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)


def pack_rows(
    chunks: Iterable[Chunk[MarkT]], row_tokens: int, skip_tokens: int = 0
) -> Iterator[PackedRow[MarkT]]:
    """Yield full rows; what is left of finite chunks in the end fills none and is not yielded.

    Args:
        chunks: in order.
        row_tokens: tokens of a row.
        skip_tokens: of the first chunk, used already: `next_token` of the row before.
    """
    row = _Row()
    is_inside = False
    for chunk in chunks:
        start, skip_tokens = skip_tokens, 0
        while start < len(chunk.tokens):
            taken = chunk.tokens[start : start + row_tokens - len(row.tokens)]
            start += len(taken)
            row.tokens += taken
            if is_inside:
                row.lengths[-1] += len(taken)
            else:
                row.lengths.append(len(taken))
            is_inside = True
            if len(row.tokens) == row_tokens:
                yield PackedRow(tuple(row.tokens), tuple(row.lengths), chunk.mark, start)
                row, is_inside = _Row(), False
        if chunk.ends_document:
            is_inside = False
