"""Launchers of several nodes meet: on one interface, all of them, wanting the same."""

import socket
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from launch.failure import Failure, FailureKind
from launch.job import JobSpec
from launch.meeting import Meeting
from launch.nodes import NodePlace
from launch.rendezvous import GangRendezvous
from launch.store import open_store
from tokenfabric.errors import TopologyError

HOST = "127.0.0.2"
SPEC = JobSpec(recipe="a:b", ranks=4, nodes=2, mesh={"ring": 2, "tp": 2}, timeout_s=20.0)


def free_port() -> int:
    with socket.create_server((HOST, 0)) as server:
        return int(server.getsockname()[1])


def meet(*specs: JobSpec, ranks: tuple[int, ...] = (0, 1)) -> list[Meeting | TopologyError]:
    """Return what comes of launchers that start at once, each a thread."""
    port = free_port()

    def one(node_rank: int, spec: JobSpec) -> Meeting | TopologyError:
        try:
            return Meeting(NodePlace(node_rank=node_rank, host=HOST, port=port), spec)
        except TopologyError as error:
            return error

    with ThreadPoolExecutor(len(specs)) as pool:
        return list(pool.map(one, ranks, specs))


def attempts(meetings: list[Meeting | TopologyError], number: int) -> list[GangRendezvous]:
    with ThreadPoolExecutor(len(meetings)) as pool:
        return list(pool.map(lambda it: it.attempt(number), meetings))  # type: ignore[union-attr]


def failure(kind: FailureKind, rank: int) -> Failure:
    return Failure(kind=kind, rank=rank, error="ValueError", message="no", host="node 1 (x)")


def test_the_store_listens_on_the_named_interface_alone() -> None:
    store, port = open_store(HOST)
    socket.create_connection((HOST, port), timeout=5).close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=5)
    assert store.port == port


def test_each_attempt_has_a_store_of_its_own() -> None:
    """Keys of ranks that died are not there for those that follow; all nodes tell one cause."""
    meetings = meet(SPEC, SPEC)
    first, second = attempts(meetings, 0), attempts(meetings, 1)
    assert first[0].port == first[1].port != second[0].port == second[1].port
    found = [failure(FailureKind.CONSEQUENCE, 0), failure(FailureKind.DEFECT, 3)]
    with ThreadPoolExecutor(2) as pool:
        told = list(pool.map(lambda it, own: it.settle(own), first, found))
    assert told == [found[1], found[1]]
    assert told[0].line == "rank 3 on node 1 (x) failed: ValueError: no"


def test_nodes_that_want_different_jobs_do_not_start() -> None:
    """On all of them, by the same words."""
    errors = meet(SPEC, replace(SPEC, mesh={"ring": 4}))
    says = "node 0 wants mesh {'ring': 2, 'tp': 2}, node 1 wants {'ring': 4}: run the same command"
    assert all(says in str(error) for error in errors), errors


def test_two_launchers_cannot_be_the_same_node() -> None:
    spec = replace(SPEC, nodes=4, mesh={})
    outcomes = meet(*[replace(spec, timeout_s=2.0)] * 3, ranks=(0, 1, 1))
    errors = sorted(str(error) for error in outcomes)
    assert "another launcher is node 1 already" in errors[0]
    assert "node 2, 3 did not come within 2 s" in errors[1]


@pytest.mark.parametrize("what", ["taken", "not of this host", "no name", "nobody"])
def test_a_rendezvous_that_cannot_be_is_one_line(what: str) -> None:
    """At once, but for a node 0 that may still come."""
    spec = replace(SPEC, timeout_s=0.5)
    with socket.create_server((HOST, 0)) as server:
        taken = int(server.getsockname()[1])
        place, says = {
            "taken": ((0, HOST, taken), "cannot listen on 127.0.0.2:.*already in use"),
            "not of this host": ((0, "203.0.113.1", 1), "cannot listen on 203.0.113.1:1 "),
            "no name": ((1, "no.such.host.invalid", 1), "no.such.host.invalid is no name"),
            "nobody": ((1, HOST, free_port()), "nobody answers at 127.0.0.2:.* after 0.5 s"),
        }[what]
        node_rank, host, port = place
        with pytest.raises(TopologyError, match=says):
            Meeting(NodePlace(node_rank=node_rank, host=host, port=port), spec)
