"""The connection to a Ray cluster, and processes on its nodes."""

import logging
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

import ray
from ray._private import ray_constants
from ray.util import placement_group, placement_group_table, remove_placement_group
from ray.util.placement_group import PlacementGroup

from launch.ray.assignment import NodeResources, check_room
from launch.torchrun import environment_of_children
from tokenfabric.errors import TopologyError

_PLACED_WITHIN_S = 60.0
_ANSWERS_WITHIN_S = 5.0


@contextmanager
def connected(
    address: str | None, environment: Mapping[str, str] = MappingProxyType({})
) -> Iterator[bool]:
    """Connect to a cluster, or start one on this machine alone; a connection that is there is kept.

    Args:
        address: as `ray.init` takes it; None: a cluster of this machine that ends with the block,
            listening on the loopback interface alone.
        environment: variables for all processes of a cluster that is started here, where the user
            has not set them, as for ranks that are started without Ray; variables that processes
            are given by Ray would replace the user's.

    Yields:
        Whether a cluster was started, and has them.

    Raises:
        TopologyError: nobody answers at the address.
    """
    if ray.is_initialized():
        yield False
        return
    if address is None:
        _start_here(environment)
    else:
        try:
            _check_that_somebody_listens(address)
            ray.init(address=address, logging_level=logging.WARNING)
        except (OSError, ValueError) as error:
            raise TopologyError(
                f"no Ray cluster answers at {address}: start one with `ray start --head`, or leave "
                f"the address out to use this machine alone; {error}"
            ) from None
    try:
        yield address is None
    finally:
        ray.shutdown()


def _check_that_somebody_listens(address: str) -> None:
    """Raise OSError where nobody does. Ray itself tries for minutes, and warns in lines of C++."""
    host, _, port = address.rpartition(":")
    if port.isdecimal() and "://" not in host:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWERS_WITHIN_S):
            pass


def _start_here(environment: Mapping[str, str]) -> None:
    """Start a cluster that listens on the loopback interface alone, without a dashboard."""
    # Ray takes an address that other machines reach instead of 127.0.0.1, unless it thinks that it
    # runs where clusters are not supported; it has no other switch.
    before = ray_constants.ENABLE_RAY_CLUSTER
    loopback = {ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR: "0"}
    with environment_of_children({**environment, **loopback}):
        ray_constants.ENABLE_RAY_CLUSTER = False
        try:
            ray.init(
                address="local",
                include_dashboard=False,
                logging_level=logging.WARNING,
                _node_ip_address="127.0.0.1",
            )
        finally:
            ray_constants.ENABLE_RAY_CLUSTER = before


def node_resources() -> list[NodeResources]:
    """Return what each node that is alive has, in order of name."""
    available = ray._private.state.available_resources_per_node()
    return sorted(
        (
            NodeResources(
                name=node_name(node),
                total=node["Resources"],
                available=available.get(node["NodeID"], {}),
            )
            for node in ray.nodes()
            if node["Alive"]
        ),
        key=lambda node: node.name,
    )


def node_name(node: Mapping[str, Any]) -> str:
    """Return a node's name for people, different for each node: nodes may share an address."""
    return f"{node['NodeManagerAddress']}/{node['NodeID'][:8]}"


@contextmanager
def bundles(
    bundle: Mapping[str, float], num_nodes: int
) -> Iterator[tuple[PlacementGroup, list[str]]]:
    """Take one bundle of resources on each of several nodes.

    Yields:
        The placement group, and the name of the node of each bundle.

    Raises:
        TopologyError: there is no room; said at once where Ray would wait.
    """
    check_room(bundle, num_nodes, node_resources())
    group = placement_group(
        [dict(bundle)] * num_nodes, strategy="STRICT_SPREAD" if num_nodes > 1 else "STRICT_PACK"
    )
    try:
        if not group.wait(timeout_seconds=_PLACED_WITHIN_S):
            # Somebody else was faster than this after the check.
            check_room(bundle, num_nodes, node_resources())
            raise TopologyError(
                f"Ray did not place {num_nodes} bundle(s) of {dict(bundle)} within "
                f"{_PLACED_WITHIN_S:g} s: other jobs take the resources; try again"
            )
        placed = placement_group_table(group)["bundles_to_node_id"]
        names = {node["NodeID"]: node_name(node) for node in ray.nodes()}
        yield group, [names[placed[index]] for index in range(num_nodes)]
    finally:
        remove_placement_group(group)
