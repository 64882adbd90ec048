"""What is chosen, and what a plan says of itself: auto, estimates, explain, lower, refusals."""

from typing import Any

import pytest
from hypothesis import given, settings

from tests.unit.ring_cases import calls
from tokenfabric.errors import ConfigError
from tokenring.choose import best_grid, rank_candidates
from tokenring.movement import STRATEGIES
from tokenring.partition import partition_tokens
from tokenring.plan import RingPlan, plan_attention
from tokenring.topology import Topology


def plan_of(**arguments: Any) -> RingPlan:
    given_: dict[str, Any] = {
        "world_size": 8, "tokens": 8 * 4096, "causal": True, "heads_q": 32, "heads_kv": 32,
        "head_dim": 128, **arguments,
    }  # fmt: skip
    return plan_attention(**given_)


SLOW_LINKS = Topology(bandwidth=5e9)
"""Links so slow that bytes decide."""


def best_of(plan: RingPlan, names: set[str]) -> str:
    """Return the fastest of some candidates."""
    return next(c.movement.name for c in plan.candidates if c.movement.name in names)


PUSHES = {"q_push", "kv_push"}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        # Equal bytes in the mean, but zigzag balances the ports of q only.
        ({"direction": "forward"}, "q_push"),
        ({"direction": "forward", "heads_kv": 4}, "kv_push"),
        ({"direction": "backward"}, "q_push"),
        ({"direction": "backward", "heads_kv": 4}, "kv_push"),
    ],
)
def test_the_smaller_tensor_travels(arguments: dict[str, Any], expected: str) -> None:
    """Per pass and per head layout."""
    plan = plan_of(topology=SLOW_LINKS, **arguments)
    assert best_of(plan, PUSHES) == expected


@pytest.mark.parametrize("heads_kv", [8, 4])
def test_few_new_tokens_move_q(heads_kv: int) -> None:
    """Prefill behind a cache: q moves where its tokens have fewer bytes than all of KV."""
    for new_tokens, cached, expected in ((64, 65536, "q_push"), (65536, 64, "kv_push")):
        q = partition_tokens(new_tokens, 8, starts=[cached])
        kv = partition_tokens(cached, 8).followed_by(q)
        plan = plan_attention(
            q_layout=q, kv_layout=kv, causal=True, heads_q=32, heads_kv=heads_kv, head_dim=128,
            topology=SLOW_LINKS,
        )  # fmt: skip
        assert best_of(plan, PUSHES) == expected


@pytest.mark.parametrize("topology", ["switch", "shared_memory"])
def test_decode_gathers_q(topology: Any) -> None:
    """One new token a sequence: every rank computes all q over its cache and returns (out, lse)."""
    caches = [5000, 300, 12000]
    q = partition_tokens([1, 1, 1], 4, "contiguous", starts=caches)
    kv = partition_tokens(caches, 4, "contiguous").followed_by(q)
    plan = plan_attention(
        q_layout=q, kv_layout=kv, causal=True, heads_q=32, heads_kv=8, head_dim=128,
        topology=topology,
    )  # fmt: skip
    plan.check()
    assert (plan.strategy, plan.movement.local) == ("q_push", "fused")
    assert plan.num_steps == 3
    kinds = {t.block.kind for part in plan.ranks for t in part.sends}
    assert kinds == {"q", "out"}


def test_ring_prefers_both_directions() -> None:
    """On a physical ring, half of MHA's KV each way beats all of it one way."""
    plan = plan_of(topology="ring", causal=False)
    order = [candidate.movement.name for candidate in plan.candidates]
    assert order.index("kv_bidirectional") < order.index("kv")
    assert order.index("kv_bidirectional") < order.index("kv_push")


def test_hosts_prefer_a_grid_to_a_flat_ring() -> None:
    """MHA with few heads over four hosts: q inside a host, each KV once over the network."""
    topology = Topology(kind="two_level", ranks_per_host=8, network_bandwidth=10e9)
    plan = plan_of(world_size=32, tokens=32 * 1024, heads_q=2, heads_kv=2, topology=topology)
    order = [candidate.movement.name for candidate in plan.candidates]
    assert order.index("grid") < order.index("kv")
    assert order.index("grid") < order.index("q_push")
    grid = best_grid(plan.problem, topology)
    assert grid is not None
    assert grid[0] * grid[1] == 8


def test_choice_is_the_same_for_every_rank() -> None:
    """Also where only its own part is asked for."""
    for arguments in ({}, {"world_size": 6, "tokens": 999}):
        names = {plan_of(rank=rank, **arguments).movement for rank in (None, 0, 3, 5)}
        assert len(names) == 1


def test_estimates_follow_the_formula() -> None:
    """max of computing and transfers per step: with free links a plan takes its computing."""
    free = Topology(
        bandwidth=1e30, latency_s=0.0, kernel_s=0.0, merge_bandwidth=1e30, flops_per_s=1e12
    )
    for strategy in ("q_push", "kv", "allgather"):
        plan = plan_of(strategy=strategy, topology=free)
        flops = max(part.flops for part in plan.ranks)
        assert plan.estimate().time_s == pytest.approx(flops / 1e12)
    slow = Topology(bandwidth=1.0, latency_s=0.0, kernel_s=0.0)
    plan = plan_of(strategy="kv_push", causal=False, topology=slow)
    assert plan.estimate().exposed_s == pytest.approx(plan.bytes_sent(0), rel=1e-6)


def test_shared_memory_adds_copies_to_computing() -> None:
    """Nothing hides a copy that the same core makes."""
    topology = Topology.preset("shared_memory")
    plan = plan_of(strategy="kv_push", topology=topology)
    copies = max(part.bytes_sent for part in plan.ranks) / topology.bandwidth
    assert plan.estimate().exposed_s >= copies


def test_local_halves_hide_the_tail() -> None:
    """The last results of q_push cost less time when half of the local work is left for them."""
    times = {
        local: plan_of(strategy="q_push", local=local, topology=Topology(bandwidth=300e9))
        .estimate()
        .time_s
        for local in ("split", "whole")
    }
    assert times["split"] < times["whole"]


def test_explain_says_what_and_why() -> None:
    """Strategy, rejected ones with their numbers, bytes by direction, balance, exposed time."""
    plan = plan_of(topology="ring")
    text = plan.explain()
    for candidate in plan.candidates:
        assert candidate.label in text
        assert f"{candidate.estimate.time_s * 1e3:.3f} ms" in text
    assert f"strategy {plan.strategy}" in text
    for word in ("of mean", "clockwise", "counterclockwise", "exposed", "predicted fastest"):
        assert word in text
    assert (
        f"{plan_of(strategy='kv').bytes_sent(3) / 1e6:.3f} MB" in plan_of(strategy="kv").explain()
    )
    assert "nothing is sent" in plan_of(world_size=1, tokens=64).explain()
    assert "and 48 more ranks" in plan_of(world_size=64, strategy="kv_push").explain()


@given(calls(max_world=6))
@settings(max_examples=60, deadline=None)
def test_schedule_has_all_work_and_bytes(call: dict[str, Any]) -> None:
    """Lowered, a plan keeps its operations and bytes, and can be run."""
    plan = plan_attention(**call)
    schedule = plan.lower()
    for part in plan.ranks:
        flops = sum(s.flops for s in schedule.stages if s.resource == f"rank {part.rank} compute")
        assert flops == part.flops
        sent = sum(
            s.num_bytes for s in schedule.stages if s.resource.startswith(f"rank {part.rank} to ")
        )
        assert sent == part.bytes_sent
    explain = plan.explain()
    assert plan.strategy in explain


def test_schedule_waits_for_what_it_reads() -> None:
    """A ring of slow links takes as long as its longest way round."""
    plan = plan_of(strategy="kv", causal=False, world_size=4, tokens=64)
    ends = plan.lower().finish_times(lambda stage: 1.0 if stage.num_bytes else 0.0)
    assert max(ends) == 3.0
    one = plan_of(strategy="kv", rank=2, causal=False, world_size=4, tokens=64)
    assert sum(s.num_bytes for s in one.lower().stages) == 2 * one.bytes_sent(2)


REFUSED = [
    ({"strategy": "spiral"}, "q, q_push, kv"),
    ({"window": 0}, "window is 0"),
    ({"window": 4, "causal": False}, "pass \\(left, right\\)"),
    ({"window": (-1, 2), "causal": False}, "negative side"),
    ({"heads_kv": 5}, "not a multiple"),
    ({"heads_q": 0}, "heads_q is 0"),
    ({"head_dim": 0}, "head_dim is 0"),
    ({"batch": -1}, "batch is -1"),
    ({"tokens": -4}, "negative"),
    ({"world_size": 0}, "world_size is 0"),
    ({"tokens": None}, "q_layout, or world_size and tokens"),
    ({"q_layout": partition_tokens(8, 8)}, "leave out tokens"),
    ({"partition": "spiral"}, "unknown partition"),
    ({"direction": "sideways"}, "direction"),
    ({"strategy": "grid"}, "needs grid"),
    ({"strategy": "grid", "grid": (2, 2, 3)}, "12 places"),
    ({"grid": (2, 2, 2)}, "leave them out"),
    ({"num_stages": 0, "strategy": "q_push"}, "num_stages is 0"),
    ({"local": "fused", "strategy": "kv"}, "cannot be fused"),
    ({"local": "half", "strategy": "kv_push"}, "local 'half'"),
    ({"rank": 8}, "not in 0..7"),
    ({"topology": "torus"}, "unknown topology"),
    ({"kv_layout": partition_tokens(8, 4)}, "same world"),
    ({"kv_layout": partition_tokens([8, 8], 8)}, "key sequences"),
    ({"kv_layout": partition_tokens(80, 8, "striped")}, "equally far apart"),
]


@pytest.mark.parametrize(("arguments", "message"), REFUSED)
def test_bad_arguments_are_refused(arguments: dict[str, Any], message: str) -> None:
    """With the value, the limit and what to do."""
    with pytest.raises(ConfigError, match=message):
        plan_of(**arguments)


@pytest.mark.parametrize(
    "field", ["bandwidth", "network_bandwidth", "flops_per_s", "merge_bandwidth"]
)
def test_rates_of_a_topology_are_positive(field: str) -> None:
    """A rate of zero would be an endless estimate."""
    with pytest.raises(ConfigError, match=field):
        Topology(**{field: 0.0})


def test_rank_of_another_part_is_refused() -> None:
    """The plan of one rank knows that one only."""
    with pytest.raises(ConfigError, match="rank 1 is not in this plan of rank"):
        plan_of(rank=0).bytes_sent(1)


def test_movement_of_an_earlier_plan_is_taken() -> None:
    """With its grid, stages and local work, for other sizes and the other pass."""
    for arguments in ({}, {"strategy": "grid", "grid": (2, 2, 2)}, {"strategy": "kv"}):
        earlier = plan_of(**arguments)
        for direction in ("forward", "backward"):
            plan = plan_of(tokens=999, strategy=earlier.movement, direction=direction)
            plan.check(max_rows=16)
            assert plan.movement.name == earlier.movement.name
            assert plan.movement.local == earlier.movement.local
            assert not plan.candidates
            grids = [(m.u, m.a, m.b) for m in (plan.movement, earlier.movement)]
            assert grids[0] == grids[1]
    with pytest.raises(ConfigError, match="leave them out"):
        plan_of(strategy=earlier.movement, num_stages=2)


def test_all_strategies_are_candidates() -> None:
    """None is forgotten by auto."""
    plan = plan_of()
    names = {c.movement.name for c in rank_candidates(plan.problem, plan.topology)}
    assert names == set(STRATEGIES)
