"""What the executor and the LM head ask of a strategy of reduction. Strategies: reduction.py."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from tokenweave.pass_memory import PassMemory, PassPart
from tokenweave.passes import Passes
from tokenweave.split_plan import ReductionChoice


@dataclass(frozen=True, slots=True)
class Norm:
    """The RMSNorm after a reduction: s * rsqrt(mean(s^2) + eps) * (weight_offset + weight)."""

    module: nn.Module
    """Owner of `weight` [hidden]. Asked at every call, so a changed weight is never missed."""
    eps: float
    weight_offset: float = 0.0
    """1.0 for models that store w of (1 + w)."""

    @property
    def weight(self) -> Tensor:
        weight = self.module.weight
        assert isinstance(weight, Tensor)
        return weight


class ReduceNorm(Protocol):
    """One reduction of a forward pass; every rank calls it with the same shapes and order."""

    def __call__(
        self,
        x_partial: Tensor,
        residual: Tensor | None,
        norm: Norm,
        bias: Tensor | None,
        out: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Return (normed, residual_new) of s = sum_r(x_partial_r) + bias + residual.

        Args:
            x_partial: [..., hidden]; may be overwritten.
            residual: what the previous call returned, or None before the first; may be overwritten
                unless the residuals are kept.
            norm: the norm of the block that reads the result.
            bias: [hidden], added once.
            out: [..., hidden] private memory that `normed` may be written to; None: new memory.
        """
        ...


class Reduction(Protocol):
    """The communication of a tensor-parallel model."""

    passes: Passes
    """How forward passes are planned and run; a strategy made of another one has the other's."""

    def memory(self, num_tokens: int, hidden: int, dtype: torch.dtype) -> PassMemory:
        """Return where a forward pass over so many tokens writes. Collective where it must grow.

        The next pass may get the same memory.
        """
        ...

    def held_memory(self) -> object:
        """Return what must stay alive as long as launches of the latest pass may be made again."""
        ...

    def prepare(
        self,
        num_tokens: int,
        hidden: int,
        dtype: torch.dtype,
        *,
        keep_residuals: bool,
        choice: ReductionChoice | None = None,
        part: PassPart | None = None,
    ) -> ReduceNorm:
        """Return the reduction for the steps of one forward pass over `num_tokens` tokens.

        Steps prepared with the same algorithm, or to keep the residuals, can follow each other.

        Args:
            num_tokens: rows of the partial sums.
            hidden: columns of the partial sums.
            dtype: of the partial sums and the residual.
            keep_residuals: each returned residual is complete and is not overwritten later.
            choice: what the pass's plan says; default: what costs least on this world.
            part: the memory of these tokens in the pass; default: none but private memory.
        """
        ...

    def partial_sum_buffer(self, num_tokens: int, hidden: int, dtype: torch.dtype) -> Tensor | None:
        """Return where the next partial sum is best written, [num_tokens, hidden], if anywhere."""
        ...

    def gather_columns(self, x: Tensor, sizes: tuple[int, ...]) -> Tensor:
        """Return the ranks' columns `x` [..., sizes[rank]] side by side, [..., sum(sizes)]."""
        ...
