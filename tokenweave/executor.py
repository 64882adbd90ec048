"""The one scheduler of a tensor-parallel forward pass: it owns every reduction and walks the plan.

Blocks compute partial sums and know nothing of communication. What a block is made of is in
integrations/, what a model is made of in model_stages.py, how a reduction is done in reduction.py,
where stages run in stage_runner.py; the state of one pass is in forward_pass.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from torch import Tensor

from tokenfabric.errors import CommError
from tokenweave.forward_pass import ForwardPass
from tokenweave.graph_plan import GraphDecision
from tokenweave.halves import HalfInputs
from tokenweave.model_stages import PartialBlock, Stage
from tokenweave.pass_record import PassRecord, Recording
from tokenweave.reduction_protocol import Norm, Reduction
from tokenweave.split_plan import SplitPlan
from tokenweave.stage_runner import InOrder, StageRunner

InputsT = TypeVar("InputsT")

__all__ = ["CommunicationStats", "Executor", "PartialBlock", "Stage"]


@dataclass(slots=True)
class CommunicationStats:
    """What this rank spent in communication. Times include waiting for slower ranks.

    On GPUs they are what launching took: nobody waits there.
    """

    num_reductions: int = 0
    reduction_s: float = 0.0
    num_gathers: int = 0
    gather_s: float = 0.0
    reduction_log_s: list[float] | None = None
    """While it is a list, every reduction appends its seconds: what ranks spent in the *same*
    reduction can then be compared. The last rank to arrive waited for nobody."""
    records: list[PassRecord] | None = None
    """While it is a list, every forward pass appends when its stages ran."""
    last_plan: SplitPlan | None = None
    """Of the latest forward pass; `.explain()` says why it was split or not."""
    num_replays: int = 0
    """Forward passes that were replays of a CUDA graph."""
    last_graph: GraphDecision | None = None
    """Of the latest forward pass; `.explain()` says why it may be a CUDA graph or not."""

    def reset(self) -> None:
        """Start counting from zero. Logs go on as they are."""
        self.num_reductions = self.num_gathers = self.num_replays = 0
        self.reduction_s = self.gather_s = 0.0


class Executor(Generic[InputsT]):
    """Walks the stages of a model. Calls are collective: same shapes and order on every rank."""

    def __init__(
        self,
        entry_norm: Norm,
        stages: Sequence[Stage[InputsT]],
        reduction: Reduction,
        runner: StageRunner | None = None,
    ) -> None:
        """Take a model.

        Args:
            entry_norm: the norm in front of the first block.
            stages: in order.
            reduction: the strategy.
            runner: where the stages of a split pass run; default: the one of `reduction.passes`.
        """
        self._entry_norm = entry_norm
        self._stages = tuple(stages)
        self._in_order = InOrder()
        self._split_runner = runner
        self.reduction = reduction
        self.stats = CommunicationStats()

    @property
    def num_blocks(self) -> int:
        """Blocks of the model, in all layers."""
        return len(self._stages)

    def run(
        self,
        x_partial: Tensor,
        plan: SplitPlan,
        halves: Sequence[HalfInputs[InputsT]],
        *,
        keep_hidden: bool = False,
    ) -> tuple[Tensor, list[Tensor]]:
        """Return (output of the last norm, hidden states), each [batch, tokens, hidden].

        Whatever ends it early on one rank breaks the world, so that the other ranks do not wait.

        Args:
            x_partial: [batch, tokens, hidden], this rank's partial sum of the embeddings.
            plan: of a pass with as many tokens and blocks; the same on every rank.
            halves: what the blocks read, for each of `plan.halves`.
            keep_hidden: return the embeddings and the residual after each layer, else [].
        """
        assert plan.num_blocks == len(self._stages), "a plan for another model"
        self.stats.last_plan = plan
        runner: StageRunner = self._in_order
        if plan.is_split:
            runner = self._split_runner or self.reduction.passes.split_runner
        forward = ForwardPass(
            self._entry_norm,
            self._stages,
            plan,
            halves,
            x_partial,
            self.reduction,
            keep_hidden=keep_hidden,
        )
        # With reductions on another thread, what the next one will read is not known here.
        self.reduction.passes.lends = runner.is_in_order
        records = self.stats.records
        recording = None if records is None else Recording(runner, plan)
        try:
            (recording or runner).run(plan.stages(), forward.perform)
            result = forward.result()
        except CommError:
            raise  # the other ranks know
        except BaseException:
            self.reduction.passes.abort()
            raise
        self._count(forward.reduction_s)
        if records is not None and recording is not None:
            records.append(recording.record(self.reduction.passes.rank))
        return result

    def note_replay(self, plan: SplitPlan) -> None:
        """Count a pass that was replayed without being walked."""
        self.stats.last_plan = plan
        self.stats.num_replays += 1
        self.stats.num_reductions += len(plan.halves) * (plan.num_blocks + 1)

    def _count(self, seconds: list[float]) -> None:
        self.stats.num_reductions += len(seconds)
        self.stats.reduction_s += sum(seconds)
        if self.stats.reduction_log_s is not None:
            self.stats.reduction_log_s += seconds
