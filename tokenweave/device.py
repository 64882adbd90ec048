"""The rates of one device and its links: all that the planner knows of a machine. Pure.

Filled from tables/*.json by device_tables.py, where every number has its source.
"""

from dataclasses import dataclass, replace
from typing import Literal

from tokenfabric.errors import ConfigError

LinkKind = Literal["multicast", "peer", "host_memory"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Tile:
    """A shape in which the GEMM library cuts its output."""

    rows: int
    columns: int
    efficiency: float
    """Of the rate of the best tile."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Device:
    """Rates are achieved ones, in a model at work, not the data sheet's."""

    name: str
    num_sms: int
    """Streaming multiprocessors; of a CPU rank, threads."""
    gemm_flops_per_sm: float
    expert_flops_per_sm: float
    """Of grouped GEMMs over experts."""
    attention_flops_per_sm: float
    memory_bandwidth: float
    """Bytes per second, read and written."""
    tiles: tuple[Tile, ...]
    expert_tile: Tile
    tile_start_s: float
    gemm_start_s: float
    attention_start_s: float
    attention_rows: int
    """Query rows of one tile of attention."""
    attention_tail: float
    """Share of the longest tile that runs alone at the end."""
    elementwise_start_s: float
    norm_start_s: float

    link: LinkKind
    """multicast: the switch adds and copies. peer: ranks read and write each other. host_memory:
    ranks on the cores of one host."""
    link_bandwidth: float
    """Bytes per second and direction of a rank's port, in a model at work."""
    isolated_link_slowdown: float
    """How much slower the link is in a benchmark of the collective alone, caches flushed; 1 where
    there is none."""
    two_shot_start_s: float
    one_shot_start_s: float
    fused_row_s: float
    """Latency of a row through one block of the fused kernel, with nothing beside it."""
    all_reduce_row_s: float
    """The same of a plain all-reduce."""
    row_interference_s: float
    """What each block adds to the latency of a row."""
    block_signal_s: float
    """What each block adds to the barriers."""
    reduction_sms: tuple[int, ...]
    """Numbers of SMs that the reduction's kernel can be given."""
    unfused_sms: int
    """SMs of the plain all-reduce that fusing is compared with."""

    join_s: float
    """From the end of a kernel on one stream to the start of one that waits for it on another."""
    launch_s: float
    """Host time of a launch without graphs."""
    expert_launch_s: float
    """Host time of a block of experts without graphs."""
    has_streams: bool
    """Whether a reduction can run beside a block at all."""

    def __post_init__(self) -> None:
        for name in ("num_sms", "gemm_flops_per_sm", "expert_flops_per_sm", "memory_bandwidth",
                     "attention_flops_per_sm", "link_bandwidth", "attention_rows"):  # fmt: skip
            if getattr(self, name) <= 0:
                raise ConfigError(f"{name} of {self.name} is {getattr(self, name)}: above 0")
        if not self.tiles or not self.reduction_sms:
            raise ConfigError(
                f"{self.name} needs a tile and a number of SMs for reductions; it has "
                f"{len(self.tiles)} and {len(self.reduction_sms)}"
            )

    def with_link(self, factor: float) -> "Device":
        """Return the device with a link of so many times the bandwidth."""
        return replace(self, link_bandwidth=self.link_bandwidth * factor)

    def isolated(self) -> "Device":
        """Return the device as a benchmark of the collective alone finds its link."""
        return self.with_link(1.0 / self.isolated_link_slowdown)
