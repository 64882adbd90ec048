"""What connects the ranks and how fast everything is: what the choice of a strategy rests on.

Pure. The figures are assumptions to be replaced by measured ones; they decide which strategy is
chosen and what explain() predicts, never what a plan computes.
"""

from dataclasses import dataclass
from typing import Literal, get_args

from tokenfabric.errors import ConfigError

TopologyKind = Literal["switch", "mesh", "ring", "two_level", "shared_memory"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Topology:
    """The links between ranks and the rates of a rank."""

    kind: TopologyKind = "switch"
    """switch: each rank has one port, any peers share it. mesh: a link of its own to each peer.
    ring: links to both neighbours, and what goes further passes them (also PCIe). two_level: a
    switch in each host, and a network port for each rank between hosts. shared_memory: ranks of
    one host; the sender's core copies, in the time it would compute.
    """
    ranks_per_host: int = 8
    """For two_level: ranks 0..ranks_per_host-1 are on the first host, and so on."""
    bandwidth: float = 360e9
    """Bytes per second and direction of a port (switch, two_level) or link (mesh, ring), or of a
    copy (shared_memory). The default is a Hopper NVSwitch port in use."""
    network_bandwidth: float = 45e9
    """Bytes per second and direction of a rank's port between hosts (two_level)."""
    latency_s: float = 10e-6
    """Time of an empty transfer."""
    flops_per_s: float = 600e12
    """Rate of the attention kernel on one rank; the default is of one H100."""
    kernel_s: float = 5e-6
    """What each further kernel costs."""
    merge_bandwidth: float = 2e12
    """Bytes per second, read and written, at which results are merged."""

    def __post_init__(self) -> None:
        if self.kind not in get_args(TopologyKind):
            raise ConfigError(
                f"unknown topology {self.kind!r}: choose one of {', '.join(get_args(TopologyKind))}"
            )
        if self.ranks_per_host < 1:
            raise ConfigError(f"ranks_per_host is {self.ranks_per_host}: pass at least 1")
        for name in ("bandwidth", "network_bandwidth", "flops_per_s", "merge_bandwidth"):
            if (value := getattr(self, name)) <= 0:
                raise ConfigError(f"{name} is {value}: pass a rate above 0")
        for name in ("latency_s", "kernel_s"):
            if (value := getattr(self, name)) < 0:
                raise ConfigError(f"{name} is {value}: pass 0 or more seconds")

    @classmethod
    def preset(cls, kind: TopologyKind) -> "Topology":
        """Return the assumptions for a kind of machine.

        switch: H100 on NVSwitch. mesh: MI300X, seven links. ring: A10 on PCIe. two_level: hosts of
        eight H100 with a 400 Gbit/s network port each. shared_memory: CPU ranks of one host, one
        thread each.
        """
        if kind == "mesh":
            return cls(kind=kind, bandwidth=50e9, flops_per_s=500e12)
        if kind == "ring":
            return cls(kind=kind, bandwidth=12.9e9, flops_per_s=82e12, merge_bandwidth=0.4e12)
        if kind == "shared_memory":
            return cls(
                kind=kind,
                bandwidth=8e9,
                latency_s=5e-6,
                flops_per_s=85e9,
                kernel_s=20e-6,
                merge_bandwidth=10e9,
            )
        return cls(kind=kind)

    def is_same_host(self, rank: int, peer_rank: int) -> bool:
        """Return whether what passes between two ranks stays inside a host."""
        return (
            self.kind != "two_level"
            or rank // self.ranks_per_host == peer_rank // self.ranks_per_host
        )
