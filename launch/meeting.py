"""The nodes of a job find each other: each runs the same command, node 0 keeps the store.

Nothing starts on any node before all are there and want the same.
"""

import json
import socket

from launch.job import JobSpec
from launch.nodes import NodePlace
from launch.rendezvous import GangRendezvous
from launch.store import StoreLostError, join_store, open_store, wait_for
from tokenfabric.errors import TopologyError


class Meeting:
    """One job's nodes, as one of them sees it."""

    def __init__(self, place: NodePlace, spec: JobSpec) -> None:
        """Wait for the other nodes, for `spec.timeout_s` at most.

        Raises:
            TopologyError: node 0 cannot listen, cannot be reached, or a node does not come; two
                launchers say they are the same node, or they want different jobs.
        """
        self._place, self._nodes, self._timeout_s = place, spec.nodes, spec.timeout_s
        if place.node_rank == 0:
            self._store, _ = open_store(place.host, place.port)
        else:
            self._store = join_store(place.host, place.port, spec.timeout_s)
        if self._store.add(f"node {place.node_rank}", 1) > 1:
            raise TopologyError(
                f"another launcher is node {place.node_rank} already: give each its own --node-rank"
            )
        self._store.set(f"job {place.node_rank}", json.dumps(_terms(spec)))
        self._wait([f"job {node}" for node in range(spec.nodes)])
        first, *others = (json.loads(self._store.get(f"job {node}")) for node in range(spec.nodes))
        for node, terms in enumerate(others, start=1):
            for name, value in terms.items():
                if value != first[name]:
                    raise TopologyError(
                        f"node 0 wants {name} {first[name]}, node {node} wants {value}: run the "
                        "same command on all nodes"
                    )

    def attempt(self, number: int) -> GangRendezvous:
        """Wait for the other nodes; return the rendezvous of an attempt, on a store of its own.

        Raises:
            TopologyError: a node does not come.
        """
        place, where = self._place, f"attempt {number}"
        # The interface that was named, or the one through which node 0 is reached.
        if place.node_rank == 0:
            store, port = open_store(place.host)
            self._store.set(where, str(port))
        else:
            self._wait([where])
            port = int(self._store.get(where))
            store = join_store(place.host, port, self._timeout_s)
        self._store.set(f"{where} of {place.node_rank}", "")
        self._wait([f"{where} of {node}" for node in range(self._nodes)])
        return GangRendezvous(
            store, host=place.host, port=port, node_rank=place.node_rank, nodes=self._nodes
        )

    def address(self) -> str:
        """Return this host's numeric address on the interface that leads to node 0."""
        place = self._place
        family, _, _, _, target = socket.getaddrinfo(place.host, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect(target)  # sends nothing: only asks the routing table
            return str(probe.getsockname()[0])

    def _wait(self, keys: list[str]) -> None:
        try:
            if wait_for(self._store, keys, self._timeout_s):
                return
            missing = [key for key in keys if not self._store.check([key])]
        except StoreLostError:
            raise TopologyError("node 0 has ended: see what it says") from None
        raise TopologyError(
            f"node {', '.join(key.split()[-1] for key in missing)} did not come within "
            f"{self._timeout_s:g} s: start it, with the same --nodes and --rendezvous, and see "
            "what it says"
        )


def _terms(spec: JobSpec) -> dict[str, object]:
    return {
        "recipe": spec.recipe,
        "ranks": spec.ranks,
        "nodes": spec.nodes,
        "mesh": dict(spec.mesh),
        "max_restarts": spec.max_restarts,
    }
