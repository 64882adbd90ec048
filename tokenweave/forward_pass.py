"""The state of one forward pass: what each stage of its plan reads and leaves behind.

A stage touches its half alone, so stages of different halves may run on different threads or
streams; the plan's waits order those of one half.
"""

import time
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import torch
from torch import Tensor

from tokenweave.halves import HalfInputs
from tokenweave.model_stages import Stage
from tokenweave.pass_memory import PassPart
from tokenweave.reduction_protocol import Norm, ReduceNorm, Reduction
from tokenweave.split_plan import EMBEDDING, PlanOp, PlanStage, ReductionChoice, SplitPlan

InputsT = TypeVar("InputsT")


class _HalfState(Generic[InputsT]):
    """One half between two stages."""

    __slots__ = (
        "apply", "hidden_states", "normed", "part", "reductions", "residual", "x_partial",
    )  # fmt: skip

    def __init__(
        self,
        inputs: HalfInputs[InputsT],
        x_partial: Tensor,
        part: PassPart,
        reductions: dict[ReductionChoice, ReduceNorm],
    ):
        shape = (*inputs.leading_shape, x_partial.shape[-1])
        self.apply = inputs.apply
        self.x_partial = x_partial.view(shape)
        self.part = part
        self.normed = part.normed.view(shape)
        self.residual: Tensor | None = None
        self.reductions = reductions
        self.hidden_states: list[Tensor] = []


class ForwardPass(Generic[InputsT]):
    """Performs the stages of a plan on the tensors of one forward pass."""

    def __init__(
        self,
        entry_norm: Norm,
        stages: Sequence[Stage[InputsT]],
        plan: SplitPlan,
        halves: Sequence[HalfInputs[InputsT]],
        x_partial: Tensor,
        reduction: Reduction,
        *,
        keep_hidden: bool,
    ):
        """Prepare the reductions of all halves. Arguments as `Executor.run`."""
        self._entry_norm = entry_norm
        self._stages = stages
        self._keep_hidden = keep_hidden
        self._shape = x_partial.shape
        hidden = x_partial.shape[-1]
        x_rows = x_partial.reshape(-1, hidden)
        # Both halves write here, so that the last norms leave the whole batch in one tensor.
        self._memory = reduction.memory(len(x_rows), hidden, x_rows.dtype)
        self._halves: dict[str, _HalfState[InputsT]] = {}
        for index, (half, inputs) in enumerate(zip(plan.halves, halves, strict=True)):
            rows = slice(*plan.tokens_of(half))
            part = self._memory.part(rows.start, rows.stop)
            choices = _choices(plan, index)
            # Steps of different algorithms can follow each other only with complete residuals.
            are_mixed = len({choice.algorithm for choice in choices}) > 1
            prepared = {
                choice: reduction.prepare(
                    rows.stop - rows.start,
                    hidden,
                    x_partial.dtype,
                    keep_residuals=keep_hidden or are_mixed,
                    choice=choice,
                    part=part,
                )
                for choice in choices
            }
            self._halves[half] = _HalfState(inputs, x_rows[rows], part, prepared)
        self._operations: dict[PlanOp, Callable[[PlanStage], None]] = {
            "embed": self._embed,
            "block": self._block,
            "reduce": self._reduce,
        }
        self.reduction_s: list[float] = []
        """What each reduction took, in the order in which they were done."""

    def perform(self, stage: PlanStage) -> None:
        """Do one stage. All that it waits for must be done."""
        self._operations[stage.op](stage)

    def result(self) -> tuple[Tensor, list[Tensor]]:
        """Return (output of the last norm, hidden states), each of the shape of x_partial."""
        halves, memory = list(self._halves.values()), self._memory
        if len(halves) == 1:
            return memory.taken_out(halves[0].normed), halves[0].hidden_states
        for half, rows in zip(halves, self._rows(), strict=True):
            if half.normed.data_ptr() != rows.data_ptr():
                rows.copy_(half.normed.view(rows.shape))  # a strategy that has no use for `out`
        hidden_states = [
            torch.cat([x.view(-1, self._shape[-1]) for x in parts]).view(self._shape)
            for parts in zip(*(half.hidden_states for half in halves), strict=True)
        ]
        return memory.taken_out(memory.normed.view(self._shape)), hidden_states

    def _rows(self) -> tuple[Tensor, ...]:
        sizes = [half.normed.shape[:-1].numel() for half in self._halves.values()]
        return self._memory.normed.split(sizes)

    def _embed(self, stage: PlanStage) -> None:
        """Put the embeddings where they are reduced; they were made before the plan was walked."""
        for half in self._halves.values():
            half.x_partial = half.part.placed(half.x_partial)

    def _block(self, stage: PlanStage) -> None:
        half = self._halves[stage.half]
        done = self._stages[stage.block]
        half.part.open()
        x_partial = half.apply(done.block, half.normed, is_per_token=done.is_per_token)
        half.x_partial = half.part.placed(x_partial)

    def _reduce(self, stage: PlanStage) -> None:
        half = self._halves[stage.half]
        choice = stage.reduction
        assert choice is not None
        reduce_norm = half.reductions[choice]
        start_s = time.perf_counter()
        # The block has read `normed`, so the next one's input may take its memory.
        if stage.block == EMBEDDING:
            ends_layer = True
            half.normed, half.residual = reduce_norm(
                half.x_partial, None, self._entry_norm, None, half.normed
            )
        else:
            done = self._stages[stage.block]
            ends_layer = done.ends_layer
            half.normed, half.residual = done.finish(
                reduce_norm, half.x_partial, half.residual, half.normed
            )
        self.reduction_s.append(time.perf_counter() - start_s)
        if self._keep_hidden and ends_layer:
            half.hidden_states.append(half.residual)


def _choices(plan: SplitPlan, index: int) -> frozenset[ReductionChoice]:
    """Return all ways in which the half of this index is reduced."""
    choices = {plan.entry[index], *(part.reductions[index] for part in plan.parts)}
    if index == len(plan.halves) - 1:
        choices.add(plan.last)
    return frozenset(choices)
