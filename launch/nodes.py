"""Which of a job's nodes this host is, and where they meet. Pure."""

from dataclasses import dataclass
from typing import Self

from tokenfabric.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class NodePlace:
    """One node of a job that a launcher of its own starts on each node."""

    node_rank: int
    """From 0; ranks follow each other node by node."""

    host: str
    """Name or address of node 0, on the interface where it shall listen."""

    port: int

    def __post_init__(self) -> None:
        if self.node_rank < 0:
            raise ConfigError(f"node_rank must be at least 0, got {self.node_rank}")
        if not 0 < self.port < 1 << 16:
            raise ConfigError(f"the port of a rendezvous is from 1 to 65535, got {self.port}")

    @classmethod
    def parse(cls, node_rank: int, rendezvous: str) -> Self:
        """Read "host:port", "10.0.0.1:29500" or "[fd00::1]:29500".

        Raises:
            ConfigError: it is none of them.
        """
        host, _, port = rendezvous.rpartition(":")
        if host.startswith("[") and host.endswith("]"):
            host = host[1:-1]
        if not host or not port.isdecimal():
            raise ConfigError(
                f"--rendezvous must be host:port, such as 10.0.0.1:29500, got {rendezvous!r}"
            )
        return cls(node_rank=node_rank, host=host, port=int(port))


def place_of(nodes: int, node_rank: int | None, rendezvous: str | None) -> NodePlace | None:
    """Return this host's place among a job's nodes; None for a job of this host alone.

    Raises:
        ConfigError: something about the nodes is missing, or is given without need.
    """
    if nodes == 1:
        if node_rank is not None or rendezvous is not None:
            raise ConfigError("--node-rank and --rendezvous go with --nodes of 2 or more")
        return None
    if node_rank is None or rendezvous is None:
        raise ConfigError(
            f"--nodes {nodes} without Ray: run this command on each of them, with its --node-rank "
            f"(0 to {nodes - 1}) and --rendezvous host:port, an address of node 0"
        )
    if not node_rank < nodes:
        raise ConfigError(f"--node-rank {node_rank} is not from 0 to {nodes - 1}")
    return NodePlace.parse(node_rank, rendezvous)
