"""Ranks and room on a Ray cluster."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launch.ray.assignment import NodeResources, assign_ranks, check_room, first_bundle
from tokenfabric.errors import TopologyError


@given(
    names=st.lists(st.text("abc", min_size=1, max_size=3), min_size=1, max_size=6, unique=True),
    ranks_per_node=st.integers(1, 4),
)
def test_ranks_of_a_node_follow_each_other(names: list[str], ranks_per_node: int) -> None:
    bundles = assign_ranks(names, ranks_per_node, master_addr="10.0.0.1", master_port=29500)
    infos = [info for bundle in bundles for info in bundle]
    assert sorted(info.rank for info in infos) == list(range(len(names) * ranks_per_node))
    for bundle in bundles:
        assert [info.local_rank for info in bundle] == list(range(ranks_per_node))
        assert [info.rank - bundle[0].rank for info in bundle] == list(range(ranks_per_node))
    # Nodes in order of name, wherever Ray put their bundles.
    by_rank = sorted(range(len(names)), key=lambda index: bundles[index][0].rank)
    assert [names[index] for index in by_rank] == sorted(names)
    assert bundles[first_bundle(names)][0].rank == 0
    assert {(info.master_addr, info.master_port, info.world_size) for info in infos} == {
        ("10.0.0.1", 29500, len(infos))
    }


def node(name: str, total: float, free: float) -> NodeResources:
    return NodeResources(name=name, total={"CPU": total}, available={"CPU": free})


def test_a_shortage_is_named() -> None:
    nodes = [node("a", 8, 2), node("b", 4, 4)]
    check_room({"CPU": 2}, 2, nodes)
    with pytest.raises(TopologyError, match=r"wanted 2 node\(s\) with 4 CPU each, but only 1 node"):
        check_room({"CPU": 4}, 2, nodes)
    with pytest.raises(TopologyError, match="a: 2 of 8 CPU free; b: 4 of 4 CPU free"):
        check_room({"CPU": 4}, 2, nodes)
    with pytest.raises(TopologyError, match=r"only 1 node\(s\) are large enough"):
        check_room({"CPU": 5}, 2, nodes)
    with pytest.raises(TopologyError, match=r"2 CPU, 1 GPU each, but only 0 node\(s\) are large"):
        check_room({"CPU": 2, "GPU": 1}, 1, nodes)
    with pytest.raises(TopologyError, match="no nodes"):
        check_room({"CPU": 1}, 1, [])
