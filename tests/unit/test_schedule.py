"""The schedule format: what it refuses, and that what it accepts can be run. Pure."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenfabric.schedule import Schedule, ScheduleError, Stage


def stage(resource: str, *waits: int, num_bytes: int = 0) -> Stage:
    return Stage(resource=resource, op="step", num_bytes=num_bytes, waits=waits)


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ((stage("a", 0),), "waits for itself"),
        ((stage("a", 1),), "waits for stage 1, but there are 1"),
        ((stage("a", -1),), "waits for stage -1"),
        ((stage("a"), stage("a", 0, 0)), "twice"),
        ((stage("a", 1), stage("b", 0)), "wait in a circle"),
        # Stage 0 waits for stage 1, which its own resource runs after it.
        ((stage("a", 1), stage("a")), "wait in a circle"),
        ((stage(""),), "needs a resource"),
        ((stage("a", num_bytes=-1),), "neither can be negative"),
    ],
)
def test_unrunnable_schedules_are_refused(stages: tuple[Stage, ...], message: str) -> None:
    """What would deadlock or make no sense is an error when it is made."""
    with pytest.raises(ScheduleError, match=message):
        Schedule(stages)


@st.composite
def schedules(draw: st.DrawFn) -> Schedule:
    count = draw(st.integers(0, 12))
    stages = [
        stage(
            draw(st.sampled_from("abc")),
            *draw(st.sets(st.integers(0, index - 1), max_size=3) if index else st.just(set())),
            num_bytes=draw(st.integers(0, 100)),
        )
        for index in range(count)
    ]
    return Schedule(tuple(stages))


@given(schedules())
def test_issue_order_honours_waits_and_resources(schedule: Schedule) -> None:
    """Every stage comes once, after its waits and after what its resource runs before it."""
    order = schedule.issue_order()
    assert sorted(order) == list(range(len(schedule.stages)))
    place = {index: at for at, index in enumerate(order)}
    for index, before in enumerate(schedule.predecessors()):
        assert all(place[earlier] < place[index] for earlier in before)
    for resource in schedule.resources():
        on_it = [i for i in order if schedule.stages[i].resource == resource]
        assert on_it == sorted(on_it)


@given(schedules())
def test_makespan_is_within_its_bounds(schedule: Schedule) -> None:
    """No shorter than the busiest resource, no longer than everything one after the other."""
    ends = schedule.finish_times(lambda s: float(s.num_bytes))
    makespan = max(ends, default=0.0)
    assert makespan <= sum(s.num_bytes for s in schedule.stages)
    assert all(makespan >= schedule.num_bytes(resource) for resource in schedule.resources())


def test_halves_overlap() -> None:
    """The module's example: the reduction of the head costs nothing, that of the tail shows."""
    schedule = Schedule(
        (
            Stage(resource="compute", op="attention head", flops=10),
            Stage(resource="comm", op="reduce head", num_bytes=4, waits=(0,)),
            Stage(resource="compute", op="attention tail", flops=10),
            Stage(resource="comm", op="reduce tail", num_bytes=4, waits=(2,)),
        )
    )
    assert schedule.finish_times(lambda s: float(s.flops + s.num_bytes)) == (10, 14, 20, 24)
    assert "attention tail" in schedule.explain()
    assert schedule.explain().splitlines()[1].endswith("after 0")
