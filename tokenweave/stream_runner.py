"""A runner for devices with streams: blocks on the caller's, reductions on one beside it.

One thread issues everything in list order; events order the two streams as the plan's waits ask
(stream_plan.py). What a stage does is issued on the current stream, which the runner sets.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Generic, Protocol, TypeVar

from tokenweave.split_plan import PlanStage
from tokenweave.stage_runner import Perform
from tokenweave.stream_plan import StreamPlan, plan_streams

StreamT = TypeVar("StreamT")
EventT = TypeVar("EventT")

_MOST_PLANS = 64
"""As many lists of stages as split_plan.py keeps."""


class Streams(Protocol[StreamT, EventT]):
    """The streams of one device; of GPUs in cuda/streams.py."""

    def current(self) -> StreamT:
        """Return the caller's stream."""
        ...

    def beside(self) -> StreamT:
        """Return a new stream whose work goes before that of others."""
        ...

    def event(self) -> EventT:
        """Return a new event."""
        ...

    def record(self, event: EventT, stream: StreamT) -> None:
        """Let the event stand for all that was issued to a stream until now."""
        ...

    def wait(self, stream: StreamT, event: EventT) -> None:
        """Let what is issued to a stream from now on wait for what the event stands for."""
        ...

    def on(self, stream: StreamT) -> AbstractContextManager[object]:
        """Make a stream the current one for a while."""
        ...


class StreamRunner(Generic[StreamT, EventT]):
    """Issues the stages of a plan to two streams, which are joined when it returns or raises.

    The caller's stream is the one that is current when a walk begins: inside a capture that of the
    capture, which the other stream then joins.
    """

    is_in_order = True

    def __init__(self, streams: Streams[StreamT, EventT]):
        """Take the device's streams. The one of the reductions is made at the first walk."""
        self._streams = streams
        self._communication: StreamT | None = None
        self._events: list[EventT] = []
        self._joined: EventT | None = None
        # By the identity of the list, which is kept beside its plan: hashing it takes longer.
        self._plans: dict[int, tuple[Sequence[PlanStage], StreamPlan]] = {}

    def run(self, stages: Sequence[PlanStage], perform: Perform) -> None:
        """Issue all stages. When it returns, all that was issued is ordered before what the caller
        issues next.
        """
        streams, plan = self._streams, self._planned(stages)
        if self._communication is None or self._joined is None:
            self._communication, self._joined = streams.beside(), streams.event()
        while len(self._events) < plan.num_events:
            self._events.append(streams.event())
        compute, communication, events = streams.current(), self._communication, self._events
        try:
            for stage, step in zip(stages, plan.steps, strict=True):
                is_compute = stage.stream == "compute"
                stream = compute if is_compute else communication
                for event in step.waits:
                    streams.wait(stream, events[event])
                if is_compute:
                    perform(stage)
                else:
                    with streams.on(communication):
                        perform(stage)
                if step.records is not None:
                    streams.record(events[step.records], stream)
        finally:
            streams.record(self._joined, communication)
            streams.wait(compute, self._joined)

    def _planned(self, stages: Sequence[PlanStage]) -> StreamPlan:
        known = self._plans.get(id(stages))
        if known is None or known[0] is not stages:
            if len(self._plans) >= _MOST_PLANS:
                self._plans.clear()
            known = self._plans[id(stages)] = stages, plan_streams(stages)
        return known[1]
