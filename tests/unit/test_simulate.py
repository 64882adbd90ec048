"""The simulator: what shares what, and how fast it is computed. Pure."""

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenfabric.errors import ConfigError
from tokenfabric.kernel import Kernel, num_waves
from tokenfabric.machine import Machine
from tokenfabric.schedule import Schedule, Stage
from tokenfabric.simulate import simulate
from tokenfabric.trace import trace_json
from tokenring.plan import plan_attention

MACHINE = Machine(num_sms=132)
GEMM = Kernel(name="gemm", tiles=300, tile_s=1e-3)
HOLDS_8 = Kernel(name="reduce", serial_s=10e-3, held_sms=8)


def compute(*kernels: Kernel, waits: tuple[int, ...] = ()) -> Stage:
    return Stage(resource="rank 0 compute", op="block", kernels=kernels, waits=waits)


def reduce(*kernels: Kernel, waits: tuple[int, ...] = ()) -> Stage:
    return Stage(resource="rank 0 communication", op="reduce", kernels=kernels, waits=waits)


def test_waves_are_those_of_the_paper() -> None:
    """300 tiles on 132 SMs: 3 waves; 150 + 150 are 4; 132 + 168 are 3."""
    assert num_waves(300, 132) == 3
    assert 2 * num_waves(150, 132) == 4
    assert num_waves(132, 132) + num_waves(168, 132) == 3


def test_reduction_takes_its_sms_while_it_runs() -> None:
    """300 tiles take 3 waves on 132 SMs and 3 beside 8 held ones; 250 tiles take 2 and 3."""
    for tiles, alone_ms, beside_ms in ((300, 3.0, 3.0), (250, 2.0, 3.0)):
        kernel = replace(GEMM, tiles=tiles)
        alone = simulate(Schedule((compute(kernel),)), MACHINE)
        beside = simulate(Schedule((reduce(HOLDS_8), compute(kernel))), MACHINE)
        assert alone.makespan_s == pytest.approx(alone_ms * 1e-3)
        assert beside.spans[1].end_s == pytest.approx(beside_ms * 1e-3)
        assert beside.makespan_s == pytest.approx(10e-3)


def test_sms_come_back_when_the_reduction_ends() -> None:
    """Evenly divisible work goes on at the speed of all SMs from then on."""
    work = Kernel(name="even", even_s=132 * 20e-3)
    timeline = simulate(Schedule((reduce(HOLDS_8), compute(work))), MACHINE)
    # 10 ms on 124 SMs do 124/132 of 10 ms of work; the rest runs on all.
    assert timeline.makespan_s == pytest.approx(10e-3 + 20e-3 - 10e-3 * 124 / 132)


def test_contention_slows_only_what_runs_side_by_side() -> None:
    """Both factors count while both kernels run, and not a moment longer."""
    machine = replace(MACHINE, communication_slowdown=2.0, computation_slowdown=1.0)
    work = Kernel(name="serial", serial_s=4e-3)
    timeline = simulate(Schedule((reduce(HOLDS_8), compute(work))), machine)
    assert timeline.spans[1].end_s == pytest.approx(4e-3)
    assert timeline.makespan_s == pytest.approx(4e-3 + 8e-3)


def test_waits_between_streams_cost_a_join_and_host_launches_one_after_the_other() -> None:
    """A stage waits for another stream's end and a join; without graphs also for its launch."""
    short = Kernel(name="short", serial_s=1e-6)
    stages = (compute(short), reduce(short, waits=(0,)), compute(short, waits=(1,)))
    joined = simulate(Schedule(stages), replace(MACHINE, join_s=3e-6))
    assert joined.makespan_s == pytest.approx(3 * 1e-6 + 2 * 3e-6)
    eager = simulate(Schedule(stages), replace(MACHINE, launch_s=1e-3))
    assert eager.makespan_s == pytest.approx(3e-3 + 1e-6)


def test_transfers_share_the_ports_they_cross() -> None:
    """On a switch two transfers into one rank take twice as long; on a mesh they do not."""
    stages = tuple(Stage(resource=f"rank {src} to 2", op="send", num_bytes=1000) for src in (0, 1))
    switch = Machine(bandwidth=1e6, latency_s=1e-3)
    mesh = replace(switch, network="mesh")
    ring = replace(switch, network="ring", world_size=4)
    assert simulate(Schedule(stages), switch).makespan_s == pytest.approx(3e-3)
    assert simulate(Schedule(stages), mesh).makespan_s == pytest.approx(2e-3)
    # 0 to 2 goes by way of 1, whose link to 2 the other transfer uses.
    assert simulate(Schedule(stages), ring).makespan_s == pytest.approx(3e-3)


def test_ring_plans_run_on_the_same_resources() -> None:
    """One TokenRing step of 6000 tokens a rank on PCIe: keys one way in 7.3 ms."""
    plan = plan_attention(world_size=4, tokens=24000, heads_q=32, heads_kv=32, head_dim=128,
                          causal=True, strategy="kv", topology="ring")  # fmt: skip
    machine = Machine(network="ring", world_size=4, bandwidth=13.5e9, flops_per_s=82e12)
    timeline = simulate(plan.lower(), machine)
    transfers = [span for span in timeline.spans if " to " in span.stage.resource]
    # Published: 7.6 ms for both, 98 MB.
    first = [s for s in transfers if s.stage.resource == transfers[0].stage.resource][:2]
    assert sum(s.end_s - s.start_s for s in first) == pytest.approx(7.3e-3, rel=0.05)
    least_s = (
        max(
            sum(s.stage.flops for s in timeline.spans if s.stage.resource == f"rank {rank} compute")
            for rank in range(4)
        )
        / 82e12
    )
    assert timeline.makespan_s >= least_s


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 400), st.integers(0, 3)), max_size=20))
def test_no_resource_does_two_things_and_nothing_is_faster_than_alone(
    drawn: list[tuple[bool, int, int]],
) -> None:
    """Stages of a resource follow each other, after their waits, in at least their own time."""
    stages: list[Stage] = []
    for index, (is_reduction, tiles, back) in enumerate(drawn):
        waits = (index - back,) if 0 < back <= index else ()
        kernel = Kernel(name="k", tiles=tiles, tile_s=1.0, held_sms=8 if is_reduction else 0)
        stages.append((reduce if is_reduction else compute)(kernel, waits=waits))
    timeline = simulate(Schedule(tuple(stages)), MACHINE)
    last: dict[str, float] = {}
    for index, span in enumerate(timeline.spans):
        assert span.start_s >= last.get(span.stage.resource, 0.0) - 1e-9
        assert all(span.start_s >= timeline.spans[it].end_s - 1e-9 for it in stages[index].waits)
        assert span.end_s - span.start_s >= stages[index].kernels[0].duration_s(132) - 1e-9
        last[span.stage.resource] = span.end_s
    assert simulate(Schedule(tuple(stages)), MACHINE) == timeline


@pytest.mark.parametrize("name", ["gpu", "rank x compute", "rank 0"])
def test_unknown_resources_are_refused(name: str) -> None:
    """A resource that means nothing to the machine is named."""
    with pytest.raises(ConfigError, match=name):
        simulate(Schedule((Stage(resource=name, op="x"),)), MACHINE)


def test_kernel_that_leaves_no_sm_is_refused() -> None:
    """Nothing could run beside it."""
    with pytest.raises(ConfigError, match="132"):
        simulate(Schedule((reduce(replace(HOLDS_8, held_sms=132)),)), MACHINE)


def test_trace_has_every_stage_and_the_overlap() -> None:
    """One event a stage and a kernel; 3 of 10 ms of the reduction have a block beside them."""
    timeline = simulate(Schedule((reduce(HOLDS_8), compute(GEMM))), MACHINE)
    trace = json.loads(trace_json(timeline, "test"))
    drawn = [event for event in trace["traceEvents"] if event["ph"] == "X"]
    assert [event["name"] for event in drawn] == ["reduce", "reduce", "block", "gemm"]
    assert drawn[0]["dur"] == pytest.approx(10e3)
    assert trace["otherData"]["overlap_ratio"] == pytest.approx(0.3)
    assert simulate(Schedule(()), MACHINE).overlap_ratio == 1.0
