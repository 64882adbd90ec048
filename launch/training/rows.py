"""Rows of tokens for training, from files, and the place to go on from."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from launch.training.documents import Piece, Place, read_pieces
from launch.training.packing import Chunk, PackedRow, pack_rows
from tokenfabric.errors import ConfigError


class Tokenizer(Protocol):
    """What is needed of a Hugging Face tokenizer."""

    eos_token_id: int | None

    def encode(self, text: str, *, add_special_tokens: bool = ...) -> list[int]: ...


@dataclass(frozen=True, slots=True)
class Progress:
    """Where the next row begins."""

    place: Place = field(default_factory=Place)
    token: int = 0
    """How many tokens of the piece there have been used."""


class RowStream:
    """Endless rows of packed documents; every rank reads all and takes its own.

    Attributes:
        progress: where the row after the last one taken begins. A stream started there yields the
            same rows.
    """

    def __init__(
        self,
        files: Sequence[Path],
        tokenizer: Tokenizer,
        *,
        context: int,
        seed: int,
        progress: Progress | None = None,
    ) -> None:
        """Read nothing yet.

        Raises:
            ConfigError: the tokenizer has no end-of-sequence token.
        """
        if tokenizer.eos_token_id is None:
            raise ConfigError(
                "the tokenizer has no end-of-sequence token, which ends a document: give it one"
            )
        self._eos = tokenizer.eos_token_id
        self._tokenizer = tokenizer
        self.progress = progress or Progress()
        chunks = self._chunks(read_pieces(files, self.progress.place, seed))
        self._rows = pack_rows(chunks, context, skip_tokens=self.progress.token)

    def take(self, count: int) -> list[PackedRow[Place]]:
        """Return the next rows."""
        rows = [next(self._rows) for _ in range(count)]
        self.progress = Progress(rows[-1].next_mark, rows[-1].next_token)
        return rows

    def _chunks(self, pieces: Iterator[Piece]) -> Iterator[Chunk[Place]]:
        for piece in pieces:
            tokens = self._tokenizer.encode(piece.text, add_special_tokens=False)
            if piece.ends_document:
                tokens = [*tokens, self._eos]
            yield Chunk(piece.place, tuple(tokens), piece.ends_document)
