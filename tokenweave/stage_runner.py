"""Where the stages of a plan run. A runner knows streams and waits, and nothing of tensors.

Here: all on the calling thread. Reductions on a thread of their own: communication_thread.py.
Timing, of these or of nothing at all: timeline.py, dry_run.py.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

from tokenweave.split_plan import PlanStage

Perform = Callable[[PlanStage], None]


class StageRunner(Protocol):
    """Performs every stage of a plan once: those of a stream in list order, none before its waits.

    `perform` issues a stage's work to where the runner has it run (the calling thread, or the
    current stream of a device), so a runner decides that before it calls, and what it calls is the
    same for all runners.
    """

    is_in_order: bool
    """Whether each stage is issued after the one before it in the list, on one thread."""

    def run(self, stages: Sequence[PlanStage], perform: Perform) -> None:
        """Perform all stages. When it returns or raises, none is running.

        Raises:
            Exception: whatever the first stage that failed raised.
        """
        ...


class InOrder:
    """Performs the stages one after the other: a plan lists them in an order that allows it."""

    is_in_order = True

    def run(self, stages: Sequence[PlanStage], perform: Perform) -> None:
        """Perform all stages on the calling thread."""
        for stage in stages:
            perform(stage)
