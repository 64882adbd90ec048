"""Runners perform every stage once, streams in order, none before its waits; errors end both."""

import threading
from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenweave.communication_thread import CommunicationThread
from tokenweave.pass_record import Recording
from tokenweave.split_plan import PartPlan, PlanStage, ReductionChoice, SplitPlan
from tokenweave.stage_runner import InOrder, StageRunner

CHOICE = ReductionChoice(algorithm="two_shot", num_sms=0)


def plan_of(num_layers: int, *, is_split: bool = True) -> SplitPlan:
    """Return a plan for 7 tokens."""
    choices = (CHOICE, CHOICE) if is_split else (CHOICE,)
    return SplitPlan(
        kind="split" if is_split else "fused_only",
        num_tokens=7,
        boundary=4 if is_split else 7,
        num_layers=num_layers,
        parts=tuple(PartPlan(name=name, reductions=choices) for name in ("attention", "mlp")),
        entry=choices,
        last=CHOICE,
    )


def no_abort() -> None:
    pytest.fail("nothing failed")


RUNNERS: dict[str, Callable[[], StageRunner]] = {
    "in order": InOrder,
    "thread": lambda: CommunicationThread(no_abort),
    "recorded thread": lambda: Recording(CommunicationThread(no_abort), plan_of(3)),
}


class Log:
    """Notes the order in which stages begin and end, over all threads."""

    def __init__(self, stages: tuple[PlanStage, ...]):
        self._index = {id(stage): index for index, stage in enumerate(stages)}
        self._lock = threading.Lock()
        self.events: list[tuple[str, int]] = []
        self.threads: dict[str, set[int]] = {}

    def perform(self, stage: PlanStage) -> None:
        index = self._index[id(stage)]
        with self._lock:
            self.events.append(("begin", index))
            self.threads.setdefault(stage.stream, set()).add(threading.get_ident())
        with self._lock:
            self.events.append(("end", index))


@pytest.mark.parametrize("name", list(RUNNERS))
def test_every_stage_runs_once_after_all_it_waits_for(name: str) -> None:
    """Over 50 walks: begins follow the ends of waits and of the stage before on the stream."""
    stages = plan_of(3).stages()
    for _ in range(50):
        log = Log(stages)
        RUNNERS[name]().run(stages, log.perform)
        at = {event: moment for moment, event in enumerate(log.events)}
        assert len(log.events) == len(at) == 2 * len(stages)
        for index, stage in enumerate(stages):
            assert all(at["end", awaited] < at["begin", index] for awaited in stage.waits)
        for stream in ("compute", "communication"):
            own = [index for index, stage in enumerate(stages) if stage.stream == stream]
            assert all(at["end", a] < at["begin", b] for a, b in pairwise(own))


def test_the_thread_has_all_reductions_and_nothing_else() -> None:
    """Blocks run on the caller's thread."""
    stages = plan_of(2).stages()
    log = Log(stages)
    CommunicationThread(no_abort).run(stages, log.perform)
    assert log.threads["compute"] == {threading.get_ident()}
    (communication,) = log.threads["communication"]
    assert communication != threading.get_ident()


def test_stages_of_both_streams_run_at_once() -> None:
    """The reduction of the head and the block of the tail after it can wait for each other."""
    stages = plan_of(1).stages()
    meeting = threading.Barrier(2)

    def perform(stage: PlanStage) -> None:
        beside = (stage.op, stage.half, stage.block) in (
            ("reduce", "head", 0),
            ("block", "tail", 0),
        )
        if beside:
            meeting.wait(timeout=30)

    CommunicationThread(no_abort).run(stages, perform)


@given(failing=st.integers(0, len(plan_of(2).stages()) - 1))
def test_what_a_stage_raises_is_raised_and_ends_both_streams(failing: int) -> None:
    """No stage that waits for the failed one runs, the thread is gone, and peers are told."""
    stages = plan_of(2).stages()
    aborts: list[int] = []
    performed: list[int] = []
    index = {id(stage): number for number, stage in enumerate(stages)}

    def perform(stage: PlanStage) -> None:
        number = index[id(stage)]
        if number == failing:
            raise KeyError(number)
        performed.append(number)

    before = threading.active_count()
    with pytest.raises(KeyError) as caught:
        CommunicationThread(lambda: aborts.append(1)).run(stages, perform)
    assert caught.value.args == (failing,)
    assert threading.active_count() == before
    assert not any(failing in stages[number].waits for number in performed)
    assert len(aborts) == (stages[failing].stream == "compute")


def test_a_failed_block_ends_a_reduction_that_waits_for_peers() -> None:
    """The reduction beside it returns only when it is aborted."""
    stages = plan_of(1).stages()
    is_waiting, is_aborted = threading.Event(), threading.Event()

    def perform(stage: PlanStage) -> None:
        if (stage.op, stage.half, stage.block) == ("reduce", "head", 0):
            is_waiting.set()
            assert is_aborted.wait(timeout=30)
            raise ConnectionError("aborted")
        if (stage.op, stage.half, stage.block) == ("block", "tail", 0):
            assert is_waiting.wait(timeout=30)
            raise KeyError("the block")

    with pytest.raises(KeyError, match="the block"):
        CommunicationThread(is_aborted.set).run(stages, perform)
