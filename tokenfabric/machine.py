"""What a simulated schedule runs on: SMs, links, rates, launches. Pure."""

import re
from dataclasses import dataclass
from typing import Literal, get_args

from tokenfabric.errors import ConfigError

Network = Literal["switch", "mesh", "ring"]

_COMPUTE = re.compile(r"rank (\d+) (compute|communication)")
_LINK = re.compile(r"rank (\d+) to (\d+)\b ?(\w*)")


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """All ranks are alike."""

    num_sms: int = 1
    """SMs of each rank: what kernels share."""
    network: Network = "switch"
    """switch: each rank has one port in and one out, any peers share them. mesh: a link to each
    peer. ring: links to both neighbours; what goes further crosses those between.
    """
    world_size: int = 1
    """Ranks; a ring needs to know."""
    bandwidth: float = 1.0
    """Bytes per second and direction of a port or link."""
    latency_s: float = 0.0
    """Of an empty transfer."""
    flops_per_s: float = 1.0
    """Rate of a stage without kernels."""
    stage_s: float = 0.0
    """What each such stage costs besides."""
    join_s: float = 0.0
    """From the end of a stage to the start of one that waits for it on another resource of the
    same rank."""
    launch_s: float = 0.0
    """Host time of each kernel's launch, one after the other in the schedule's order; 0: a graph
    launches all of them."""
    slow_launches: tuple[tuple[str, float], ...] = ()
    """(name of a kernel, host time of its launch), where it is not launch_s."""
    communication_slowdown: float = 1.0
    """Of a kernel that holds SMs, while another kernel of its rank runs."""
    computation_slowdown: float = 1.0
    """Of a kernel beside one that holds SMs."""

    def __post_init__(self) -> None:
        if self.network not in get_args(Network):
            raise ConfigError(f"network {self.network!r} is none of {', '.join(get_args(Network))}")
        for name in ("num_sms", "world_size", "bandwidth", "flops_per_s",
                     "communication_slowdown", "computation_slowdown"):  # fmt: skip
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} of the machine is {getattr(self, name)}: above 0")
        for name in ("latency_s", "stage_s", "join_s", "launch_s"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"{name} of the machine is {getattr(self, name)}: 0 or more")

    def ports_of(self, resource: str) -> tuple[str, ...]:
        """Return the ports and links that a resource's transfers cross; () if it is no link.

        Raises:
            ConfigError: the name of the resource is not one that schedules use.
        """
        found = _LINK.fullmatch(resource)
        if found is None:
            rank_of(resource)
            return ()
        src, dst, direction = int(found[1]), int(found[2]), found[3]
        if self.network == "switch":
            return (f"rank {src} out", f"rank {dst} in")
        if self.network == "mesh":
            return (f"link {src} to {dst}",)
        return self._hops(src, dst, direction)

    def _hops(self, src: int, dst: int, direction: str) -> tuple[str, ...]:
        size = self.world_size
        if not 0 <= max(src, dst) < size:
            raise ConfigError(f"a link from {src} to {dst} in a ring of {size} ranks")
        clockwise = (dst - src) % size
        is_clockwise = clockwise * 2 < size or (
            clockwise * 2 == size and direction != "counterclockwise"
        )
        step, count = (1, clockwise) if is_clockwise else (-1, size - clockwise)
        return tuple(
            f"link {(src + step * hop) % size} to {(src + step * (hop + 1)) % size}"
            for hop in range(count)
        )


def rank_of(resource: str) -> int | None:
    """Return the rank whose SMs a resource uses; None for a link.

    Raises:
        ConfigError: the name is not one that schedules use.
    """
    if found := _COMPUTE.fullmatch(resource):
        return int(found[1])
    if _LINK.fullmatch(resource):
        return None
    raise ConfigError(
        f'resource {resource!r} is neither "rank 0 compute" or "rank 0 communication" nor '
        '"rank 0 to 1", with a direction or without'
    )
