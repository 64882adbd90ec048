"""The one scheduler of a tensor-parallel forward pass: it owns every reduction.

Blocks compute partial sums and know nothing of communication. What a block is made of is in
integrations/, how a reduction is done in reduction.py.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from torch import Tensor

from tokenweave.reduction import Norm, Reduction

InputsT_contra = TypeVar("InputsT_contra", contravariant=True)
InputsT = TypeVar("InputsT")


class PartialBlock(Protocol[InputsT_contra]):
    """This rank's share of a block (attention or MLP) of a model."""

    def __call__(self, normed: Tensor, inputs: InputsT_contra) -> Tensor:
        """Return this rank's partial sum, [batch, tokens, hidden], without the block's bias.

        Args:
            normed: [batch, tokens, hidden], the same on all ranks; must not be kept.
            inputs: what else the blocks of this forward pass read (masks, positions, cache).
        """
        ...


@dataclass(frozen=True, slots=True)
class Stage(Generic[InputsT]):
    """A block and the reduction after it."""

    block: PartialBlock[InputsT]
    bias: Tensor | None
    """[hidden], complete on every rank; added once, inside the reduction."""
    norm: Norm
    """The norm in front of the next block, or the model's last one."""
    ends_layer: bool
    """The residual after it is a hidden state of the model."""


@dataclass(slots=True)
class CommunicationStats:
    """What this rank spent in communication. Times include waiting for slower ranks."""

    num_reductions: int = 0
    reduction_s: float = 0.0
    num_gathers: int = 0
    gather_s: float = 0.0
    reduction_log_s: list[float] | None = None
    """While it is a list, every reduction appends its seconds: what ranks spent in the *same*
    reduction can then be compared. The last rank to arrive waited for nobody."""

    def reset(self) -> None:
        """Start counting from zero. A log goes on as it is."""
        self.num_reductions = self.num_gathers = 0
        self.reduction_s = self.gather_s = 0.0


class Executor(Generic[InputsT]):
    """Walks the stages of a model. Calls are collective: same shapes and order on every rank."""

    def __init__(
        self, entry_norm: Norm, stages: Sequence[Stage[InputsT]], reduction: Reduction
    ) -> None:
        """Take the norm in front of the first block, the stages in order, and the strategy."""
        self._entry_norm = entry_norm
        self._stages = tuple(stages)
        self._reduction = reduction
        self.stats = CommunicationStats()

    def run(
        self, x_partial: Tensor, inputs: InputsT, *, keep_hidden: bool = False
    ) -> tuple[Tensor, list[Tensor]]:
        """Return (output of the last norm, hidden states).

        Args:
            x_partial: [batch, tokens, hidden], this rank's partial sum of the embeddings.
            inputs: handed to every block.
            keep_hidden: return the embeddings and the residual after each layer, else [].
        """
        num_tokens, hidden = x_partial.shape[:-1].numel(), x_partial.shape[-1]
        reduce_norm = self._reduction.prepare(
            num_tokens, hidden, x_partial.dtype, keep_residuals=keep_hidden
        )
        clock = time.perf_counter

        start_s = clock()
        normed, residual = reduce_norm(x_partial, None, self._entry_norm, None, None)
        seconds = [clock() - start_s]
        hidden_states = [residual] if keep_hidden else []

        for stage in self._stages:
            x_partial = stage.block(normed, inputs)
            start_s = clock()
            # The block has read `normed`, so the next one may take its memory.
            normed, residual = reduce_norm(x_partial, residual, stage.norm, stage.bias, normed)
            seconds.append(clock() - start_s)
            if keep_hidden and stage.ends_layer:
                hidden_states.append(residual)

        self.stats.num_reductions += len(seconds)
        self.stats.reduction_s += sum(seconds)
        if self.stats.reduction_log_s is not None:
            self.stats.reduction_log_s += seconds
        return normed, hidden_states
