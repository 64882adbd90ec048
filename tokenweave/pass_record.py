"""What the stages of a forward pass took: noted while any runner performs them."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from tokenfabric.schedule import Stage
from tokenfabric.timeline import StageSpan, Timeline
from tokenweave.split_plan import PlanStage, SplitPlan
from tokenweave.stage_runner import Perform, StageRunner


@dataclass(frozen=True, kw_only=True, slots=True)
class PassRecord:
    """One forward pass on one rank."""

    plan: SplitPlan
    timeline: Timeline
    """When each of `plan.stages()` ran, from the start of the pass."""
    host_s: tuple[float, ...]
    """How long the thread that issued each stage was busy with it."""


class Recording:
    """A runner that notes when another runner's stages ran. For one run."""

    def __init__(self, runner: StageRunner, plan: SplitPlan):
        """Take the runner, and the plan that its stages are of."""
        self.is_in_order = runner.is_in_order
        self._runner = runner
        self._plan = plan
        self._times: dict[int, tuple[float, float]] = {}
        self._start_s = 0.0

    def run(self, stages: Sequence[PlanStage], perform: Perform) -> None:
        """Perform all stages as the other runner does."""
        times, clock = self._times, time.perf_counter

        def timed(stage: PlanStage) -> None:
            start_s = clock()
            perform(stage)
            times[id(stage)] = start_s, clock()

        self._start_s = clock()
        self._runner.run(stages, timed)

    def record(self, rank: int) -> PassRecord:
        """Return what was noted, after a run that raised nothing."""
        stages = self._plan.stages()
        times = [self._times[id(stage)] for stage in stages]
        return PassRecord(
            plan=self._plan,
            timeline=timeline_of(self._plan, rank, [self._from_start(*both) for both in times]),
            host_s=tuple(end_s - start_s for start_s, end_s in times),
        )

    def _from_start(self, start_s: float, end_s: float) -> tuple[float, float]:
        return start_s - self._start_s, end_s - self._start_s


def timeline_of(plan: SplitPlan, rank: int, times: Sequence[tuple[float, float]]) -> Timeline:
    """Return a timeline of a plan's stages.

    Args:
        plan: the plan.
        rank: whose streams they ran on.
        times: start and end of each of `plan.stages()`, in seconds.
    """
    return Timeline(
        tuple(
            StageSpan(
                stage=Stage(
                    resource=f"rank {rank} {stage.stream}", op=plan.label(stage), waits=stage.waits
                ),
                start_s=start_s,
                end_s=end_s,
            )
            for stage, (start_s, end_s) in zip(plan.stages(), times, strict=True)
        )
    )
