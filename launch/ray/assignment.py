"""Which node's process becomes which rank, and whether there is room for them. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tokenfabric.env import RankInfo
from tokenfabric.errors import TopologyError


@dataclass(frozen=True, kw_only=True, slots=True)
class NodeResources:
    """What one node of the cluster has in all, and what of it nobody has taken."""

    name: str
    total: Mapping[str, float]
    available: Mapping[str, float]


def check_room(bundle: Mapping[str, float], num_nodes: int, nodes: Sequence[NodeResources]) -> None:
    """Check that as many nodes as are wanted have room for one bundle each.

    Ray would wait for ever for what no node will ever have.

    Raises:
        TopologyError: they have not; names what was wanted and what each node has.
    """
    wanted = ", ".join(f"{amount:g} {name}" for name, amount in bundle.items())
    num_large = sum(_fits(bundle, node.total) for node in nodes)
    num_free = sum(_fits(bundle, node.available) for node in nodes)
    if num_free >= num_nodes:
        return
    each = "; ".join(
        f"{node.name}: "
        + ", ".join(
            f"{node.available.get(name, 0):g} of {node.total.get(name, 0):g} {name} free"
            for name in bundle
        )
        for node in nodes
    )
    problem = (
        f"only {num_large} node(s) are large enough"
        if num_large < num_nodes
        else f"only {num_free} node(s) have that free now"
    )
    raise TopologyError(
        f"wanted {num_nodes} node(s) with {wanted} each, but {problem} ({each or 'no nodes'}): ask "
        "for fewer ranks a node or threads a rank, add nodes, or wait for other jobs"
    )


def assign_ranks(
    node_names: Sequence[str], ranks_per_node: int, *, master_addr: str, master_port: int
) -> tuple[tuple[RankInfo, ...], ...]:
    """Return the ranks of each bundle: those of a node follow each other, nodes in order of name.

    Ranks that follow each other share memory: a tensor-parallel group lies inside a node, and a
    ring, whose ranks lie further apart, spans nodes.

    Args:
        node_names: of each bundle, in order of the bundles; where each was placed.
        ranks_per_node: processes of each bundle.
        master_addr, master_port: where rank 0 listens.
    """
    order = sorted(range(len(node_names)), key=lambda bundle: (node_names[bundle], bundle))
    place = {bundle: index for index, bundle in enumerate(order)}
    return tuple(
        tuple(
            RankInfo(
                rank=place[bundle] * ranks_per_node + local,
                world_size=len(node_names) * ranks_per_node,
                local_rank=local,
                local_world_size=ranks_per_node,
                master_addr=master_addr,
                master_port=master_port,
            )
            for local in range(ranks_per_node)
        )
        for bundle in range(len(node_names))
    )


def first_bundle(node_names: Sequence[str]) -> int:
    """Return the bundle whose first process becomes rank 0."""
    return min(range(len(node_names)), key=lambda bundle: (node_names[bundle], bundle))


def _fits(bundle: Mapping[str, float], resources: Mapping[str, float]) -> bool:
    return all(resources.get(name, 0.0) >= amount for name, amount in bundle.items())
