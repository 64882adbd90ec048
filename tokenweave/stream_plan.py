"""Which events order the stages of a plan that run on two streams. Pure.

A stream runs its stages in list order, so waiting for a stage of the other stream is waiting for
all before it there: a stage needs at most one event of each other stream, and none for what an
earlier wait has covered. Events are used again as soon as the last wait for them has been issued,
because a wait means what was recorded when it was issued.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from tokenweave.split_plan import PlanStage, Stream


@dataclass(frozen=True, kw_only=True, slots=True)
class StreamStep:
    """What surrounds the issue of one stage on its stream."""

    waits: tuple[int, ...]
    """Events that the stream waits for before it."""
    records: int | None
    """The event that is recorded after it, if a stage of another stream waits for that."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StreamPlan:
    """The events of one walk, by stage of the list."""

    steps: tuple[StreamStep, ...]
    num_events: int


def plan_streams(stages: Sequence[PlanStage]) -> StreamPlan:
    """Return the events that order `stages` across streams as their waits ask.

    Args:
        stages: as `SplitPlan.stages()`: every stage waits for earlier ones only.
    """
    awaited = _awaited(stages)
    last_wait = {source: index for index, sources in enumerate(awaited) for source in sources}
    free: list[int] = []
    num_events = 0
    event_of: dict[int, int] = {}
    steps = []
    for index, sources in enumerate(awaited):
        waits = tuple(event_of[source] for source in sources)
        free += [event_of.pop(source) for source in sources if last_wait[source] == index]
        records = None
        if index in last_wait:
            if not free:
                free.append(num_events)
                num_events += 1
            records = event_of[index] = free.pop()
        steps.append(StreamStep(waits=waits, records=records))
    return StreamPlan(steps=tuple(steps), num_events=num_events)


def _awaited(stages: Sequence[PlanStage]) -> list[list[int]]:
    """Return for each stage the stages of other streams whose events it waits for."""
    covered: dict[tuple[Stream, Stream], int] = {}
    awaited = []
    for stage in stages:
        latest: dict[Stream, int] = {}
        for source in stage.waits:
            stream = stages[source].stream
            if stream != stage.stream:
                latest[stream] = max(source, latest.get(stream, -1))
        needed = []
        for stream, source in latest.items():
            if source > covered.get((stage.stream, stream), -1):
                covered[stage.stream, stream] = source
                needed.append(source)
        awaited.append(needed)
    return awaited
