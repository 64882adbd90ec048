"""A runner with a thread for the reductions, where a rank has a core for it."""

import threading
from collections.abc import Callable, Sequence

from tokenweave.split_plan import PlanStage, Stream
from tokenweave.stage_runner import Perform


class CommunicationThread:
    """Runs blocks on the calling thread and reductions beside them on a thread of this walk.

    The native reductions leave the interpreter to others while they run. They are made by that
    thread alone, in the order of the plan, so that all ranks make them in the same order.
    """

    is_in_order = False

    def __init__(self, abort: Callable[[], None]):
        """Take what ends a reduction that waits for other ranks, after a block here failed."""
        self._abort = abort

    def run(self, stages: Sequence[PlanStage], perform: Perform) -> None:
        """Perform all stages; what a stage raises is raised here, the thread ended."""
        walk = _Walk(stages, perform)
        thread = threading.Thread(
            target=walk.run, args=("communication",), name="tokenweave communication"
        )
        thread.start()
        try:
            walk.run("compute")
            if walk.failure is not None and walk.failed_on == "compute":
                self._abort()
        finally:
            # Every wait of a reduction has a deadline, and those for a block ended with the blocks.
            thread.join()
        if walk.failure is not None:
            raise walk.failure


class _Walk:
    """One run: how far each stream has come, and what went wrong first."""

    def __init__(self, stages: Sequence[PlanStage], perform: Perform):
        self._stages = stages
        self._perform = perform
        self._changed = threading.Condition()
        self._is_done = [False] * len(stages)
        self.failure: BaseException | None = None
        self.failed_on: Stream | None = None

    def run(self, stream: Stream) -> None:
        """Perform the stages of one stream until all are done, or one of either stream failed."""
        try:
            for index, stage in enumerate(self._stages):
                if stage.stream == stream:
                    if not self._is_ready(stage):
                        return
                    self._perform(stage)
                    with self._changed:
                        self._is_done[index] = True
                        self._changed.notify_all()
        except BaseException as error:
            # Also a Ctrl-C: the other thread must not be left waiting.
            with self._changed:
                if self.failure is None:
                    self.failure, self.failed_on = error, stream
                self._changed.notify_all()

    def _is_ready(self, stage: PlanStage) -> bool:
        """Wait for what `stage` waits for; tell whether it is to be performed."""
        with self._changed:
            self._changed.wait_for(
                lambda: self.failure is not None or all(self._is_done[i] for i in stage.waits)
            )
            return self.failure is None
