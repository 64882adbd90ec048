"""Reductions for layers that normalize a block's output before it is added (Gemma 2 and 3).

    y = round(post_norm(sum over ranks of x_partial + bias));   residual = residual + y
    normed = next_norm(residual)

Made of two of the operations that there are: the sum over ranks is fused with the post-norm and
moves y; then every rank adds y to the residual and normalizes, all ranks all rows. One native
operation would let the owner of a row do all of it, with the residual in row shards, and move
`normed` instead of y: as many bytes between ranks, and no second pass over all rows on every rank.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from tokenfabric.world import World
from tokenweave.pass_memory import PassMemory, PassPart
from tokenweave.reduction import Norm, ReduceNorm, Reduction, alone_reduction
from tokenweave.split_plan import ReductionChoice


@dataclass(frozen=True, slots=True, kw_only=True)
class SandwichNorm(Norm):
    """The norm of the residual that follows the reduction, and the one of what is added to it."""

    post: Norm
    """Of the block's output, before the addition."""


class SandwichReduction:
    """Implements Reduction where some norms are SandwichNorms. The residual is complete everywhere.

    Deterministic, the same bits on all ranks, and batch-invariant, as the reduction it is made of.
    """

    def __init__(self, reduction: Reduction, world: World):
        """Take the strategy for the sum over ranks."""
        self._reduction = reduction
        self.passes = reduction.passes
        self._alone = alone_reduction(world)

    def memory(self, num_tokens: int, hidden: int, dtype: torch.dtype) -> PassMemory:
        return self._reduction.memory(num_tokens, hidden, dtype)

    def held_memory(self) -> object:
        return self._reduction.held_memory()

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
        def step(reduction: Reduction, part: PassPart | None, *, is_kept: bool) -> ReduceNorm:
            return reduction.prepare(
                num_tokens, hidden, dtype, keep_residuals=is_kept, choice=choice, part=part
            )

        return _SandwichStep(
            # Its residual is the one that goes on, on every rank.
            entry=step(self._reduction, part, is_kept=True),
            # Its "residual" is the sum before the post-norm, which nobody reads: wherever it lies,
            # but not where the one that goes on does.
            post=step(self._reduction, None, is_kept=False),
            add=step(self._alone, part, is_kept=keep_residuals),
        )

    def partial_sum_buffer(self, num_tokens: int, hidden: int, dtype: torch.dtype) -> Tensor | None:
        return self._reduction.partial_sum_buffer(num_tokens, hidden, dtype)

    def gather_columns(self, x: Tensor, sizes: tuple[int, ...]) -> Tensor:
        return self._reduction.gather_columns(x, sizes)


@dataclass(frozen=True, slots=True, kw_only=True)
class _SandwichStep:
    """Implements ReduceNorm."""

    entry: ReduceNorm
    post: ReduceNorm
    add: ReduceNorm

    def __call__(
        self,
        x_partial: Tensor,
        residual: Tensor | None,
        norm: Norm,
        bias: Tensor | None,
        out: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        if not isinstance(norm, SandwichNorm):
            return self.entry(x_partial, residual, norm, bias, out)
        y, _ = self.post(x_partial, None, norm.post, bias, None)
        return self.add(y, residual, norm, None, out)
