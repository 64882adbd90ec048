"""Events that order two streams: as a plan's waits ask, none too many, and used again safely."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.stream_trace import Access, Memory, NotedStreams, Trace
from tests.unit.test_stage_runner import plan_of
from tokenweave.split_plan import EMBEDDING, PlanStage
from tokenweave.stream_plan import plan_streams
from tokenweave.stream_runner import StreamRunner

STREAM = {"compute": 0, "communication": 1}


@st.composite
def stage_lists(draw: st.DrawFn) -> list[PlanStage]:
    """Return stages on two streams that wait for any earlier ones."""
    stages: list[PlanStage] = []
    for index in range(draw(st.integers(1, 14))):
        waits = draw(st.sets(st.integers(0, index - 1), max_size=3)) if index else set()
        stages.append(
            PlanStage(
                op="block", half="all", block=index, part=EMBEDDING,
                stream=draw(st.sampled_from(["compute", "communication"])),
                waits=tuple(sorted(waits)),
            )
        )  # fmt: skip
    return stages


@given(stages=stage_lists())
def test_events_order_what_waits_ask_for(stages: list[PlanStage]) -> None:
    """Walked with vector clocks, every stage comes after all that it waits for."""
    plan, trace = plan_streams(stages), Trace()
    ended: list[Access] = []
    for stage, step in zip(stages, plan.steps, strict=True):
        stream = STREAM[stage.stream]
        for event in step.waits:
            trace.wait(stream, event)
        moment = trace.begin(stream)
        assert all(trace._is_after(stream, ended[index]) for index in stage.waits)
        ended.append(Access(stream, moment, 0, 1, True, f"stage {stage.block}"))
        if step.records is not None:
            trace.record(step.records, stream)


@given(stages=stage_lists())
def test_no_event_is_more_than_is_needed(stages: list[PlanStage]) -> None:
    """Every recorded event is waited for; a stage waits for one event at most."""
    plan = plan_streams(stages)
    recorded = [step.records for step in plan.steps if step.records is not None]
    assert all(len(step.waits) <= 1 for step in plan.steps)
    assert len(recorded) <= sum(len(step.waits) for step in plan.steps)
    assert set(recorded) == set(range(plan.num_events))


def test_a_split_pass_needs_few_events() -> None:
    """However many layers: one for each reduction and block that is under way."""
    assert plan_streams(plan_of(1).stages()).num_events == plan_streams(
        plan_of(40).stages()
    ).num_events <= 4  # fmt: skip
    assert plan_streams(plan_of(3, is_split=False).stages()).num_events == 0


class Works:
    """Stages that touch the bytes of their half: a block writes a sum, a reduction a norm."""

    def __init__(self, streams: NotedStreams) -> None:
        self._streams = streams
        self._memory = {half: (Memory(0), Memory(0)) for half in ("head", "tail", "all")}

    def perform(self, stage: PlanStage) -> None:
        stream, trace = self._streams.now, self._streams.trace
        assert stream == STREAM[stage.stream]
        moment = trace.begin(stream)
        halves = ("head", "tail") if stage.half == "all" else (stage.half,)
        for half in halves:
            for memory, is_write in zip(
                self._memory[half], (stage.op != "reduce", stage.op == "reduce"), strict=True
            ):
                trace.touch(memory, Access(stream, moment, 0, 1, is_write, stage.op))


def mistakes_of(runner: StreamRunner[int, int], streams: NotedStreams) -> list[str]:
    """Return what is unordered in two passes of two layers, and after them."""
    works = Works(streams)
    stages = plan_of(2).stages()
    for _ in range(2):
        runner.run(stages, works.perform)
    moment = streams.trace.begin(0)
    for half in ("head", "tail"):
        streams.trace.touch(works._memory[half][1], Access(0, moment, 0, 1, False, "the caller"))
    return streams.trace.mistakes


def test_stages_run_on_their_streams_in_order() -> None:
    """Everything two passes touch is ordered, and so is what the caller does next."""
    streams = NotedStreams(Trace())
    assert mistakes_of(StreamRunner(streams), streams) == []
    assert streams.now == 0


class DeafStreams(NotedStreams):
    """Streams that do not hear one of the waits."""

    def __init__(self, deaf_to: int) -> None:
        super().__init__(Trace())
        self.waits, self._deaf_to = 0, deaf_to

    def wait(self, stream: int, event: int) -> None:
        self.waits += 1
        if self.waits - 1 != self._deaf_to:
            super().wait(stream, event)


def _num_waits() -> int:
    streams = DeafStreams(-1)
    assert mistakes_of(StreamRunner(streams), streams) == []
    return streams.waits


@pytest.mark.parametrize("missing", range(_num_waits()))
def test_a_missing_wait_is_noticed(missing: int) -> None:
    """Each of the waits of two passes, their joins included, is one that something needs."""
    streams = DeafStreams(missing)
    assert mistakes_of(StreamRunner(streams), streams) != []


def test_streams_are_joined_after_an_error_too() -> None:
    """What was issued until then is ordered before what the caller does next."""
    streams = NotedStreams(Trace())
    works, stages = Works(streams), plan_of(2).stages()

    def perform(stage: PlanStage) -> None:
        if stage.block == 2:
            raise KeyError("on purpose")
        works.perform(stage)

    with pytest.raises(KeyError):
        StreamRunner(streams).run(stages, perform)
    moment = streams.trace.begin(0)
    for half in ("head", "tail"):
        for memory in works._memory[half]:
            streams.trace.touch(memory, Access(0, moment, 0, 1, True, "the caller"))
    assert streams.trace.mistakes == []
    assert streams.now == 0


def test_lists_of_stages_are_told_apart() -> None:
    """A runner keeps what it has planned by the list itself, for many lists."""
    streams = NotedStreams(Trace())
    runner, lists = StreamRunner(streams), [plan_of(n).stages() for n in range(1, 80)]
    random.Random(0).shuffle(lists)
    for stages in (*lists, *lists):
        assert len(runner._planned(stages).steps) == len(stages)


@pytest.mark.parametrize(("is_recorded", "is_wrong"), [(False, True), (True, False)])
def test_memory_that_is_used_again_too_early_is_noticed(is_recorded: bool, is_wrong: bool) -> None:
    """A tensor of one stream, read on another and dropped, without and with record_stream."""
    trace, memory = Trace(), Memory(stream=0)
    trace.touch(memory, Access(0, trace.begin(0), 0, 8, True, "made"))
    trace.record(0, 0)
    trace.wait(1, 0)
    trace.touch(memory, Access(1, trace.begin(1), 0, 8, False, "read beside"))
    if is_recorded:
        memory.recorded.add(1)
    trace.give_back(memory)
    trace.begin(0)
    assert bool(trace.mistakes) == is_wrong
