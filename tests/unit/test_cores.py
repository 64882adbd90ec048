"""Reading cores from made-up trees and from this machine, and pinning this very process."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.made_up_cores import machine, write_sys
from tokenfabric.cores import parse_cores, pin_process, plan_on_this_host, read_cores
from tokenfabric.errors import ConfigError, TopologyError
from tokenfabric.placement import Core, format_cores

NO_SUCH_CORE = 1023


@pytest.fixture
def own_cores() -> Iterator[set[int]]:
    """The cores of this process, which it has again afterwards."""
    before = os.sched_getaffinity(0)
    yield before
    pin_process(before)


@given(st.sets(st.integers(0, 300)))
def test_lists_of_cores_are_read_as_they_are_written(cores: set[int]) -> None:
    """The kernel's notation, there and back."""
    ascending = tuple(sorted(cores))
    assert parse_cores(format_cores(ascending) + "\n") == ascending


@pytest.mark.parametrize("is_adjacent", [False, True])
def test_two_sockets_with_smt(tmp_path: Path, is_adjacent: bool) -> None:
    """Node, socket and siblings of each core; a node that has only memory changes nothing."""
    cores = machine(sockets=2, nodes=2, physical=3, smt=2, is_adjacent=is_adjacent)
    root = write_sys(tmp_path, cores, num_nodes=5)
    by_index = tuple(sorted(cores, key=lambda core: core.index))
    assert read_cores(root, range(len(cores))) == by_index


def test_only_what_was_asked_for(tmp_path: Path) -> None:
    """Cores outside the affinity are not read, and a sibling that is offline stays one."""
    root = write_sys(tmp_path, machine(physical=2, smt=2), num_nodes=1)
    assert read_cores(root, {3}) == (Core(index=3, physical=1),)


def test_system_that_says_nothing(tmp_path: Path) -> None:
    """Without /sys, or where firmware does not number sockets, there is one."""
    assert read_cores(tmp_path, [5]) == (Core(index=5, physical=5),)
    write_sys(tmp_path, machine(physical=1), num_nodes=0)
    package = tmp_path / "sys/devices/system/cpu/cpu0/topology/physical_package_id"
    package.write_text("-1\n")
    assert read_cores(tmp_path, [0]) == (Core(index=0, physical=0),)


def test_this_machine(own_cores: set[int]) -> None:
    """Every core that this process may use, and nothing else; a plan for it exists."""
    cores = read_cores()
    assert [core.index for core in cores] == sorted(own_cores)
    assert {core.physical for core in read_cores(indices=range(os.cpu_count() or 1))} >= {
        core.physical for core in cores
    }
    plan = plan_on_this_host(1, num_threads=1)
    assert plan.is_pinned
    assert set(plan.cores_of_rank[0]) == own_cores


def test_process_moves_to_its_cores(own_cores: set[int]) -> None:
    """And is where it was when it is given them again."""
    core = max(own_cores)
    pin_process([core])
    assert os.sched_getaffinity(0) == {core}
    assert [found.index for found in read_cores()] == [core]
    pin_process(own_cores)
    assert os.sched_getaffinity(0) == own_cores


def test_cores_out_of_reach_are_named(own_cores: set[int]) -> None:
    """All of them, or some: the kernel refuses the first and drops the others silently."""
    if NO_SUCH_CORE in own_cores:
        pytest.skip(f"there is a core {NO_SUCH_CORE}")
    first = min(own_cores)
    with pytest.raises(TopologyError, match=f"cannot run on cores {NO_SUCH_CORE}: Invalid"):
        pin_process([NO_SUCH_CORE])
    with pytest.raises(TopologyError, match=f"this process may use {first} only"):
        pin_process([first, NO_SUCH_CORE])
    with pytest.raises(ConfigError, match="at least one core"):
        pin_process([])
