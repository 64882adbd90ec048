"""Where a forward pass writes: the norms of all its tokens, and what of that leaves the model."""

from typing import Protocol

import torch
from torch import Tensor


class PassPart(Protocol):
    """The memory of one half of a pass."""

    normed: Tensor
    """[tokens of the half, hidden], where its norms may be written; a view of the pass's."""

    def open(self) -> None:
        """A block of this half comes next: what it sums partially may be written here."""
        ...

    def placed(self, x_partial: Tensor) -> Tensor:
        """Return a partial sum, of any shape, where the next reduction reads it best.

        Called where blocks run, so that a copy is ordered as they are.
        """
        ...


class PassMemory(Protocol):
    """The memory of one pass."""

    normed: Tensor
    """[tokens, hidden]."""

    def part(self, start: int, stop: int) -> PassPart:
        """Return the memory of the tokens [start, stop)."""
        ...

    def taken_out(self, x: Tensor) -> Tensor:
        """Return what leaves the model in memory that is the caller's."""
        ...


class PrivatePassMemory:
    """Implements PassMemory with memory of this pass alone, which may leave with it."""

    def __init__(self, num_tokens: int, hidden: int, dtype: torch.dtype, device: torch.device):
        """Allocate the norms of all tokens."""
        self.normed = torch.empty(num_tokens, hidden, dtype=dtype, device=device)

    def part(self, start: int, stop: int) -> PassPart:
        return _PrivatePart(self.normed[start:stop])

    def taken_out(self, x: Tensor) -> Tensor:
        return x


class _PrivatePart:
    """Implements PassPart."""

    __slots__ = ("normed",)

    def __init__(self, normed: Tensor):
        self.normed = normed

    def open(self) -> None:
        """Nothing: blocks ask the strategy where partial sums go."""

    def placed(self, x_partial: Tensor) -> Tensor:
        return x_partial
