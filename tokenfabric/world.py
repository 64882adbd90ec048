"""The world: a rank's handle on the group it communicates with, and the registry torch ops need.

Not here: how ranks find each other (rendezvous.py), what several hosts need besides (hosts.py),
what runs on the world (tokenweave, tokenring).
"""

import os
import weakref
from typing import TYPE_CHECKING, Self

import torch
import torch.distributed as dist

from tokenfabric import env, native, topology
from tokenfabric.comm_clock import CommClock
from tokenfabric.cuda.ranks import CudaRanks
from tokenfabric.describe import describe_world
from tokenfabric.errors import ConfigError, TokenFabricError
from tokenfabric.fork import watch_forks
from tokenfabric.hosts import Call, Hosts
from tokenfabric.links import connect_links
from tokenfabric.log import rank_logger
from tokenfabric.prepared import PreparedCalls
from tokenfabric.rendezvous import Meeting, MeshSettings, connect, process_group_of
from tokenfabric.unusable import why_no_communicator

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

    from tokenfabric.channel import Channel
    from tokenfabric.symmetric import SymmetricBuffer

# Of one slot, in bytes; a rank has two of each. A partial sum that fits needs no copy before its
# reduction; larger tensors pass through staging in blocks that stay in cache.
_PARTIAL_BYTES = 8 << 20
_STAGING_BYTES = 4 << 20
_CPU = torch.device("cpu")

# torch ops take strings, not objects: they find their world here. Weak: a dropped world is gone.
_worlds: "weakref.WeakValueDictionary[str, World]" = weakref.WeakValueDictionary()


def find_world(group_name: str) -> "World":
    """Return the open world registered under `group_name` (see `World.group_name`).

    Raises:
        ConfigError: there is none.
    """
    world = _worlds.get(group_name)
    if world is None:
        raise ConfigError(
            f"no open world is named {group_name!r}; open worlds: {sorted(_worlds) or 'none'}"
        )
    return world


class World:
    """A group of ranks, as one of them sees it. Those on one host share memory.

    Attributes:
        rank, size: this rank and the number of ranks.
        num_hosts, host_idx, local_rank, local_size: where it lies; `layout` says who else does.
        hosts: what a world on several hosts has besides; None on one host.
        device: where tensors live. Ranks on GPUs have all that ranks on CPUs have, besides.
        cuda: what a world on GPUs has besides; None on CPUs.
        group: the process group, or None for a world of one made without torch.distributed.
        group_name: name under which torch ops find this world.
        timeout_s: deadline of every wait on another rank, seconds.
        num_threads: threads of this rank's kernels.
        left_by: the process whose world this is, in a forked child of it; else None.
        prepared: what the packages above have settled once; emptied by `close`.
        channel: messages between the ranks, once somebody has opened it; closed by `close`.
        comm_clock: how long this rank has been in the messages and agreements of tokenring's calls.
    """

    def __init__(
        self,
        group: dist.ProcessGroup | None,
        *,
        timeout_s: float = 30.0,
        num_threads: int | None = None,
        owns_group: bool = False,
        device: torch.device = _CPU,
    ) -> None:
        """Collective over `group`. Use `tokenfabric.init` or `World.from_group`."""
        check_options(timeout_s, num_threads)
        self.group = group
        self.rank = 0 if group is None else dist.get_rank(group)
        self.size = 1 if group is None else dist.get_world_size(group)
        self.timeout_s = timeout_s
        self._owns_group = owns_group
        self._comm: native.fabric.Communicator | None = None
        self._buffers: weakref.WeakSet[SymmetricBuffer] = weakref.WeakSet()
        self.prepared = PreparedCalls()
        self.channel: Channel | None = None
        self.comm_clock = CommClock()
        self.left_by: int | None = None
        self.row_kernels = native.weave.choose_row_kernels(env.isa())
        settings = MeshSettings(
            partial_bytes=_PARTIAL_BYTES,
            staging_bytes=_STAGING_BYTES,
            num_threads=num_threads or torch.get_num_threads(),
        )
        meeting = Meeting.alone()
        if group is not None and self.size > 1:
            meeting = connect(group, settings, timeout_s)
        self.layout = layout = meeting.layout
        self.num_hosts, self.host_idx = layout.num_hosts, layout.host_idx
        self.local_rank, self.local_size = layout.local_rank, layout.local_size
        self.num_threads = num_threads or topology.default_threads(
            meeting.cores_of_rank, torch.get_num_threads()
        )
        self.placement = topology.HostPlacement(
            rank=layout.local_rank,
            cores_of_rank=meeting.cores_of_rank,
            num_threads=self.num_threads,
        )
        self._host_comm: native.fabric.Communicator | None = native.fabric.Communicator(
            meeting.mesh,
            num_threads=self.num_threads,
            spin_count=self.placement.spin_count,
            timeout_s=timeout_s,
            partial_bytes=settings.partial_bytes if layout.local_size > 1 else 0,
            staging_bytes=settings.staging_bytes if layout.local_size > 1 else 1,
            base_epoch=0,
            first_rank=layout.host_ranks[0],
            world_size=self.size,
        )
        self.hosts: Hosts | None = None
        if group is None or layout.num_hosts == 1:
            self._comm = self._host_comm
        else:
            links = connect_links(group, layout, timeout_s)
            self.hosts = Hosts(group, layout, links, self._host_comm, timeout_s)
            # Its thread and connections end with this object, closed or not.
            self._leave_hosts = weakref.finalize(self, self.hosts.close)
        self.cuda = CudaRanks(group, device, timeout_s) if device.type == "cuda" else None
        self.device = device if self.cuda is None else self.cuda.device
        self.group_name = _register(self)
        rank_logger(self.rank, self.size).info("%s", self)

    @classmethod
    def from_group(
        cls,
        group: "dist.ProcessGroup | DeviceMesh | None",
        *,
        timeout_s: float = 30.0,
        num_threads: int | None = None,
        device: torch.device = _CPU,
    ) -> "World":
        """Build a world on a process group or a one-dimensional mesh axis.

        Collective over its ranks. The group stays the caller's: `close` leaves it alone. A `device`
        is torch.device("cuda", index), the index this rank's own.

        Raises:
            ConfigError: the mesh has more than one dimension, or this process is not in the group.
            TopologyError, MismatchError, PeerLostError, CommTimeoutError: see `init`.
        """
        process_group = process_group_of(group)
        if dist.get_rank(process_group) < 0:
            raise ConfigError("this process is not a member of the group it builds a world on")
        return cls(process_group, timeout_s=timeout_s, num_threads=num_threads, device=device)

    @property
    def comm(self) -> "native.fabric.Communicator":
        """The native communicator of all ranks, for the ops of this library.

        Raises:
            ConfigError: the world is closed.
            TopologyError: the ranks lie on several hosts, so not all of them share memory.
        """
        if self._comm is None:
            raise why_no_communicator(self)
        return self._comm

    @property
    def host_comm(self) -> "native.fabric.Communicator":
        """The native communicator of this host's ranks, by local rank. ConfigError: closed."""
        if self._host_comm is None:
            raise why_no_communicator(self)
        return self._host_comm

    @property
    def is_closed(self) -> bool:
        """Whether `close` was called."""
        return self._host_comm is None

    @property
    def broken(self) -> TokenFabricError | None:
        """The error every further collective would raise, or None while the world works."""
        comm = self.host_comm
        if self.cuda is not None and (failure := self.cuda.error()) is not None:
            return failure
        if self.hosts is not None:
            return self.hosts.error()
        try:
            comm.check()
        except TokenFabricError as error:
            return error
        return None

    def barrier(self) -> None:
        """Wait until all ranks have called it. Collective.

        Raises:
            MismatchError, PeerLostError, CommTimeoutError: see `tokenfabric.errors`.
        """
        if self.hosts is None or self.is_closed:
            self.comm.barrier()
        else:
            self.hosts.agree(Call(native.fabric.OP_BARRIER))

    def describe(self) -> str:
        """Say in a few lines what was chosen for this world and why."""
        return describe_world(self, partial_bytes=_PARTIAL_BYTES, staging_bytes=_STAGING_BYTES)

    def __repr__(self) -> str:
        what = f"rank={self.rank}, size={self.size}, device={self.device}"
        how = f"num_threads={self.num_threads}, kernels={self.row_kernels.name}"
        return f"World({what}, {how}, timeout_s={self.timeout_s:g})"

    def close(self) -> None:
        """Leave the world. Not collective; peers that still wait for this rank get PeerLostError.

        Tensors made from its buffers stay valid memory. Closing twice is allowed.
        """
        if self.cuda is not None:
            self.cuda.close()
        for buffer in list(self._buffers):
            buffer.close()
        self._comm = self._host_comm = None
        self.prepared.clear()
        if self.channel is not None:
            self.channel.close()
        if self.hosts is not None:
            self._leave_hosts()
        if _worlds.get(self.group_name) is self:
            del _worlds[self.group_name]
        if self._owns_group and dist.is_initialized():
            self._owns_group = False
            dist.destroy_process_group()

    def leave_to_parent(self) -> object:
        """Become a closed world in a forked child (see fork.py)."""
        self.left_by, self._owns_group = os.getppid(), False
        kept = (self._comm, self._host_comm, self.prepared, self.channel, self.cuda)
        self._comm = self._host_comm = self.channel = None
        self.prepared = PreparedCalls()
        return kept

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _adopt(self, buffer: "SymmetricBuffer") -> None:
        self._buffers.add(buffer)


def _register(world: World) -> str:
    base = "solo" if world.group is None else world.group.group_name
    name, number = base, 1
    while name in _worlds:
        number += 1
        name = f"{base}#{number}"
    _worlds[name] = world
    watch_forks(_worlds.values)
    return name


def check_options(timeout_s: float, num_threads: int | None) -> None:
    """Check what every way to a world takes; ConfigError."""
    if num_threads is not None and num_threads < 1:
        raise ConfigError(f"a rank needs at least one thread, got num_threads={num_threads}")
    if not timeout_s > 0:
        raise ConfigError(f"timeout_s must be positive, got {timeout_s}: every wait has a deadline")
