"""Which cores ranks get: what holds on every machine, and what is right on common ones."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.made_up_cores import machine, machines
from tokenfabric.errors import ConfigError
from tokenfabric.placement import Core, PlacementPlan, format_cores, plan_placement
from tokenfabric.placement_advice import advise

RANKS = st.integers(1, 12)
THREADS = st.none() | st.integers(1, 8)
QUOTAS = st.none() | st.integers(1, 64).map(lambda quarters: quarters / 4)


def shares(plan: PlacementPlan, cores: Sequence[Core]) -> list[list[Core]]:
    """Return each rank's cores."""
    by_index = {core.index: core for core in cores}
    return [[by_index[index] for index in share] for share in plan.cores_of_rank]


@given(machines(), RANKS, THREADS, QUOTAS)
def test_pinned_ranks_have_disjoint_cores_for_all_their_threads(
    cores: tuple[Core, ...], ranks: int, threads: int | None, quota: float | None
) -> None:
    """Pinned exactly when every thread can have a core; otherwise every rank may use all."""
    plan = plan_placement(ranks, cores, num_threads=threads, quota_cores=quota)
    assert plan.is_pinned == (ranks * (threads or 1) <= len(cores))
    assert len(plan.cores_of_rank) == len(plan.nodes_of_rank) == ranks
    assert threads in (None, plan.num_threads)
    used = Counter(index for share in plan.cores_of_rank for index in share)
    assert used.keys() <= {core.index for core in cores}
    if plan.is_pinned:
        assert set(used.values()) == {1}
        assert all(len(share) >= plan.num_threads for share in plan.cores_of_rank)
    else:
        assert set(used.values()) == {ranks}
        assert len(used) == len(cores)
        assert f"{ranks} ranks" in plan.reason or ranks == 1


@given(machines(), RANKS, THREADS, QUOTAS, st.randoms())
def test_plan_does_not_depend_on_the_order_of_the_cores(
    cores: tuple[Core, ...], ranks: int, threads: int | None, quota: float | None, chance: object
) -> None:
    """What all ranks and every start work out is the same."""
    plan = plan_placement(ranks, cores, num_threads=threads, quota_cores=quota)
    shuffled = list(cores)
    chance.shuffle(shuffled)  # type: ignore[attr-defined]
    assert plan_placement(ranks, shuffled, num_threads=threads, quota_cores=quota) == plan


@given(machines(), RANKS)
def test_a_rank_lies_inside_a_node_or_has_whole_nodes(cores: tuple[Core, ...], ranks: int) -> None:
    """Nobody's memory is cut by a node's border that another layout would respect."""
    plan = plan_placement(ranks, cores)
    if not plan.is_pinned:
        return
    for share in shares(plan, cores):
        nodes = {core.node for core in share}
        whole = {core.index for core in cores if core.node in nodes}
        assert len(nodes) == 1 or whole == {core.index for core in share}


@given(machines(), RANKS)
def test_ranks_are_numbered_node_by_node(cores: tuple[Core, ...], ranks: int) -> None:
    """Neighbouring ranks, which talk most in a ring, lie on one node or on neighbouring ones."""
    plan = plan_placement(ranks, cores)
    first_nodes = [nodes[0] for nodes in plan.nodes_of_rank]
    assert first_nodes == sorted(first_nodes)


@given(machines(), RANKS)
def test_smt_siblings_stay_together(cores: tuple[Core, ...], ranks: int) -> None:
    """No two ranks share a physical core while there is one for each; threads need no sibling."""
    plan = plan_placement(ranks, cores)
    physical = [{core.physical for core in share} for share in shares(plan, cores)]
    if plan.is_pinned and ranks <= len({core.physical for core in cores}):
        assert sum(map(len, physical)) == len(set().union(*physical))
        assert all(len(own) >= plan.num_threads for own in physical)
    assert any("(SMT)" in note for note in plan.notes) == (
        plan.is_pinned and sum(map(len, physical)) > len(set().union(*physical))
    )


@given(machines(), RANKS)
def test_no_layout_inside_nodes_has_more_threads(cores: tuple[Core, ...], ranks: int) -> None:
    """Checked against the arithmetic: so many shares of t physical cores fit into the nodes."""
    sizes = Counter(node for node, _ in {(core.node, core.physical) for core in cores})
    fitting = [
        threads
        for threads in range(1, len(cores) + 1)
        if sum(size // threads for size in sizes.values()) >= ranks
    ]
    if fitting:
        assert plan_placement(ranks, cores).num_threads >= max(fitting)


@given(machines(), RANKS, QUOTAS)
def test_threads_stay_within_the_quota(
    cores: tuple[Core, ...], ranks: int, quota: float | None
) -> None:
    """Or it is said that the ranks will be stopped at times."""
    plan = plan_placement(ranks, cores, quota_cores=quota)
    is_over = quota is not None and ranks * plan.num_threads > quota
    assert plan.num_threads == 1 or not is_over
    assert any("quota" in note for note in plan.notes) == is_over


@given(machines(), RANKS, THREADS)
def test_every_core_is_dealt_or_said_to_be_idle(
    cores: tuple[Core, ...], ranks: int, threads: int | None
) -> None:
    """Fewer threads leave room inside the shares; they do not leave cores without a rank."""
    plan = plan_placement(ranks, cores, num_threads=threads)
    dealt = set().union(*plan.cores_of_rank)
    idle = sorted(core.index for core in cores if core.index not in dealt)
    notes = [note for note in plan.notes if "get no rank" in note]
    assert len(notes) == bool(idle)
    assert all(note.startswith(f"cores {format_cores(idle)} ") for note in notes)


@given(machines(), RANKS, THREADS)
def test_a_plan_without_faults_gets_no_advice(
    cores: tuple[Core, ...], ranks: int, threads: int | None
) -> None:
    """What a running rank says of itself agrees with what was planned."""
    plan = plan_placement(ranks, cores, num_threads=threads)
    advice = [advise(rank, plan.cores_of_rank, plan.num_threads, cores) for rank in range(ranks)]
    faults = [note for note in plan.notes if "get no rank" not in note]
    assert any(advice) == bool(faults or not plan.is_pinned)


@given(machines(), RANKS, THREADS)
def test_explain_has_a_line_for_each_rank(
    cores: tuple[Core, ...], ranks: int, threads: int | None
) -> None:
    """Then why nothing is pinned, and the notes."""
    plan = plan_placement(ranks, cores, num_threads=threads)
    lines = plan.explain().splitlines()
    assert len(lines) == ranks + (not plan.is_pinned) + len(plan.notes)
    for rank, cores_of_rank in enumerate(plan.cores_of_rank):
        assert lines[rank].startswith(f"rank {rank}: cores {format_cores(cores_of_rank)} on NUMA")
        assert f"{plan.num_threads} thread(s)" in lines[rank]


TWO_SOCKETS = machine(sockets=2, physical=8, smt=2)
SIX_NODES = machine(sockets=3, nodes=2, physical=8)
QUARTERS = machine(sockets=2, nodes=2, physical=8)
COMMON = {
    "one rank a socket": (2, TWO_SOCKETS, None, ("0-7,16-23", "8-15,24-31"), 8),
    "two ranks a socket": (
        4, TWO_SOCKETS, None, ("0-3,16-19", "4-7,20-23", "8-11,24-27", "12-15,28-31"), 4,
    ),
    "SMT when asked for": (2, TWO_SOCKETS, 16, ("0-7,16-23", "8-15,24-31"), 16),
    "fewer threads": (2, TWO_SOCKETS, 2, ("0-7,16-23", "8-15,24-31"), 2),
    "two nodes a socket": (2, QUARTERS, None, ("0-15", "16-31"), 16),
    "three of four nodes": (3, QUARTERS, None, ("0-7", "8-15", "16-23"), 8),
    "nodes cut when asked for": (3, QUARTERS, 10, ("0-10", "11-21", "22-31"), 10),
    "odd machine": (3, machine(physical=8), None, ("0-2", "3-5", "6-7"), 2),
    "siblings at last": (
        3, machine(physical=2, smt=2, is_adjacent=True), None, ("0-1", "2", "3"), 1,
    ),
    "small nodes left out": (
        2, tuple(c for c in SIX_NODES if c.index in (0, 8) or c.index >= 16), None,
        ("16-31", "32-47"), 16,
    ),
    "hole and offline core": (
        2, tuple(c for c in QUARTERS if c.index in (1, 3, 9, 11, 30)), None, ("1,3", "9,11"), 2,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", COMMON)
def test_common_machines(name: str) -> None:
    """By hand."""
    ranks, cores, threads, expected, num_threads = COMMON[name]
    plan = plan_placement(ranks, cores, num_threads=threads)
    assert tuple(format_cores(share) for share in plan.cores_of_rank) == expected
    assert plan.num_threads == num_threads


@pytest.mark.parametrize(("quota", "threads"), [(64.0, 8), (9.0, 4), (4.5, 2), (1.5, 1), (0.5, 1)])
def test_container_with_a_quota(quota: float, threads: int) -> None:
    """Cores are dealt as without one: which of them are idle is the scheduler's to find."""
    plan = plan_placement(2, TWO_SOCKETS, quota_cores=quota)
    assert plan.num_threads == threads
    assert plan.cores_of_rank == plan_placement(2, TWO_SOCKETS).cores_of_rank
    assert bool(plan.notes) == (quota < 2)


def test_without_pinning_keeps_the_threads() -> None:
    """All cores are open to all ranks, and the reason is the caller's."""
    plan = plan_placement(2, TWO_SOCKETS).without_pinning("not wanted")
    assert plan.cores_of_rank == (tuple(range(32)),) * 2
    assert plan.nodes_of_rank == ((0, 1),) * 2
    assert (plan.num_threads, plan.is_pinned, plan.reason) == (8, False, "not wanted")


@pytest.mark.parametrize(
    ("ranks", "cores", "threads", "message"),
    [
        (0, TWO_SOCKETS, None, "num_ranks=0"),
        (1, TWO_SOCKETS, 0, "num_threads=0"),
        (1, (), None, r"got \[\]"),
        (1, (TWO_SOCKETS[0], replace(TWO_SOCKETS[0], node=1)), None, r"got \[0, 0\]"),
    ],
)
def test_nonsense_is_refused(
    ranks: int, cores: tuple[Core, ...], threads: int | None, message: str
) -> None:
    """Naming the value."""
    with pytest.raises(ConfigError, match=message):
        plan_placement(ranks, cores, num_threads=threads)


ALL = tuple(range(32))
FAULTS = {
    "shared": (((0, 1), (1, 2)), 1, "may be moved to cores of local rank(s) 1"),
    "everything open": ((ALL, ALL), 1, "give each rank cores of its own"),
    "oversubscribed": (((0,), (0,)), 1, "2 rank(s) of 1 thread(s) take turns on 1 core(s)"),
    "too many threads": (((0, 16), tuple(range(1, 16))), 3, "3 threads take turns on core(s) 0,16"),
    "siblings": (((0,), (16,)), 1, "shares physical cores (SMT) with local rank(s) 1"),
    "two nodes": (((7, 8), (9,)), 1, "may run on NUMA nodes 0-1"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_fault_is_named(name: str) -> None:
    """With what to do about it."""
    cores_of_rank, threads, message = FAULTS[name]
    assert any(message in sentence for sentence in advise(0, cores_of_rank, threads, TWO_SOCKETS))
