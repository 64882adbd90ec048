"""A half of a forward pass as the blocks see it: rectangles of the batch, one call for each."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor

InputsT = TypeVar("InputsT")


@dataclass(frozen=True, slots=True)
class PieceInputs(Generic[InputsT]):
    """What a block is called with for one rectangle, besides the hidden states."""

    num_sequences: int
    num_tokens: int
    """Of each sequence."""
    inputs: InputsT


@dataclass(frozen=True, slots=True)
class HalfInputs(Generic[InputsT]):
    """The rectangles of a half, in order of their rows."""

    pieces: tuple[PieceInputs[InputsT], ...]

    @property
    def leading_shape(self) -> tuple[int, ...]:
        """Of the half's tensors, before the hidden dimension: the rectangle's, or (rows,)."""
        if len(self.pieces) == 1:
            return self.pieces[0].num_sequences, self.pieces[0].num_tokens
        return (sum(piece.num_sequences * piece.num_tokens for piece in self.pieces),)

    def apply(
        self, block: Callable[[Tensor, InputsT], Tensor], normed: Tensor, *, is_per_token: bool
    ) -> Tensor:
        """Return the block's partial sums of the half.

        Args:
            block: see model_stages.PartialBlock.
            normed: [*leading_shape, hidden].
            is_per_token: the block may be called once for the tokens of all pieces.

        Returns:
            Like normed.
        """
        if len(self.pieces) == 1:
            return block(normed, self.pieces[0].inputs)
        if is_per_token:
            return block(normed.unsqueeze(0), self.pieces[0].inputs).reshape(normed.shape)
        hidden, start = normed.shape[-1], 0
        partial_sums: list[Tensor] = []
        for piece in self.pieces:
            stop = start + piece.num_sequences * piece.num_tokens
            rows = normed[start:stop].view(piece.num_sequences, piece.num_tokens, hidden)
            partial_sums.append(block(rows, piece.inputs).reshape(-1, hidden))
            start = stop
        return torch.cat(partial_sums)
