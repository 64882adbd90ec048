"""The executor without a model and without ranks: what a plan makes it do, and what that costs.

The real executor walks the real plan; only blocks and reductions do nothing. So the time its
stages take is the executor's own, and the order of its stages is what it would do.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from tokenweave.executor import Executor, Stage
from tokenweave.halves import HalfInputs, PieceInputs
from tokenweave.pass_memory import PassMemory, PassPart, PrivatePassMemory
from tokenweave.pass_record import PassRecord, timeline_of
from tokenweave.passes import Passes
from tokenweave.reduction_protocol import Norm, ReduceNorm
from tokenweave.split_plan import PlanStage, ReductionChoice, SplitPlan, Stream
from tokenweave.stage_runner import InOrder, StageRunner


class DryRun:
    """An executor for the plans of models with so many blocks, in a world of one rank."""

    def __init__(self, num_blocks: int, passes: Passes, runner: StageRunner | None = None):
        """Make the executor.

        Args:
            num_blocks: of the model.
            passes: of any world; no rank but this one takes part.
            runner: of split passes; default: one stage after the other.
        """
        norm = Norm(nn.Module(), eps=0.0)
        stages = [
            Stage(block=_same, bias=None, norm=norm, ends_layer=False) for _ in range(num_blocks)
        ]
        self._executor = Executor(norm, stages, _NoWork(passes), runner or InOrder())

    def run(
        self, plan: SplitPlan, duration_s: Callable[[PlanStage], float] | None = None
    ) -> PassRecord:
        """Walk a plan.

        Args:
            plan: the plan.
            duration_s: how long each stage would take, in seconds. Default: what nothing took.

        Returns:
            Its `host_s` is what the executor itself took for each stage; its timeline is the one of
            `duration_s` if every stage starts as soon as its stream and its waits allow.
        """
        self._executor.stats.records = []
        self.walk(plan)
        (record,) = self._executor.stats.records
        self._executor.stats.records = None
        return record if duration_s is None else _moved(record, duration_s)

    def walk(self, plan: SplitPlan) -> None:
        """Walk a plan and time nothing."""
        halves = [
            HalfInputs((PieceInputs(1, stop - start, None),))
            for start, stop in map(plan.tokens_of, plan.halves)
        ]
        self._executor.run(torch.empty(1, plan.num_tokens, 1), plan, halves)


class _NoWork:
    """Implements Reduction: nothing is summed."""

    def __init__(self, passes: Passes):
        self.passes = passes

    def memory(self, num_tokens: int, hidden: int, dtype: torch.dtype) -> PassMemory:
        return PrivatePassMemory(num_tokens, hidden, dtype, torch.device("cpu"))

    def held_memory(self) -> object:
        return None

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
        return _no_reduction

    def partial_sum_buffer(self, num_tokens: int, hidden: int, dtype: torch.dtype) -> Tensor | None:
        return None

    def gather_columns(self, x: Tensor, sizes: tuple[int, ...]) -> Tensor:
        return x


def _same(normed: Tensor, inputs: None) -> Tensor:
    return normed


def _no_reduction(
    x_partial: Tensor,
    residual: Tensor | None,
    norm: Norm,
    bias: Tensor | None,
    out: Tensor | None,
) -> tuple[Tensor, Tensor]:
    return x_partial, x_partial


def _moved(record: PassRecord, duration_s: Callable[[PlanStage], float]) -> PassRecord:
    """Return the record with the starts and ends that durations give."""
    times: list[tuple[float, float]] = []
    stream_ends: dict[Stream, float] = {}
    for stage in record.plan.stages():
        ends = [times[awaited][1] for awaited in stage.waits]
        start_s = max([stream_ends.get(stage.stream, 0.0), *ends])
        times.append((start_s, start_s + duration_s(stage)))
        stream_ends[stage.stream] = times[-1][1]
    return replace(record, timeline=timeline_of(record.plan, 0, times))
