"""How the ranks of a process group come to share memory with those on their host.

Every rank opens a socket in a private folder, all ranks learn all paths through one all-gather of
fixed-size bytes (a size mismatch in gloo aborts the process, so sizes are constants), then connect
to each other, host by host (connections between hosts: links.py). The folder is gone before the
first collective. No pickle: what peers send is parsed, not run.
"""

import os
import secrets
import shutil
import socket
import struct
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist

from tokenfabric import native, topology
from tokenfabric.errors import ConfigError, MismatchError

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

_MAGIC = b"tokenfabric-1"
_PATH_BYTES = 108  # of a Unix socket address
_CORE_BYTES = 256  # bit i: the rank may run on core i
_CARD = struct.Struct(f"<16s 16s Q q q q {_CORE_BYTES}s {_PATH_BYTES}s")
_FOLDER_PREFIX = "tokenfabric-meeting-"


@dataclass(frozen=True, kw_only=True, slots=True)
class MeshSettings:
    """What must be equal on all ranks before they share memory."""

    partial_bytes: int
    staging_bytes: int
    num_threads: int
    """Threads each rank was given or takes: plans depend on whether all of them have cores."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Meeting:
    """The outcome of a rendezvous."""

    layout: topology.HostLayout
    mesh: "native.fabric.Mesh | None"
    """Of the ranks on this host; None for a rank that is alone there."""
    cores_of_rank: tuple[tuple[int, ...], ...]
    """Cores each rank of this host may run on, by local rank."""

    @classmethod
    def alone(cls) -> "Meeting":
        """Return what a world of one rank has met."""
        layout = topology.HostLayout(rank=0, num_hosts=1, local_size=1)
        return cls(layout=layout, mesh=None, cores_of_rank=(topology.usable_cores(),))


@dataclass(frozen=True, kw_only=True, slots=True)
class _Card:
    """What a rank tells the others about itself."""

    host: bytes
    nonce: int
    settings: MeshSettings
    cores: tuple[int, ...]
    path: str

    def pack(self) -> bytes:
        return _CARD.pack(
            _MAGIC,
            self.host,
            self.nonce,
            self.settings.partial_bytes,
            self.settings.staging_bytes,
            self.settings.num_threads,
            sum(1 << core for core in self.cores).to_bytes(_CORE_BYTES, "little"),
            self.path.encode(),
        )

    @classmethod
    def unpack(cls, data: bytes) -> "_Card":
        magic, host, nonce, partial_bytes, staging_bytes, num_threads, core_bits, path = (
            _CARD.unpack(data)
        )
        if magic.rstrip(b"\0") != _MAGIC:
            raise MismatchError(f"a rank runs another version of tokenfabric: it said {magic!r}")
        settings = MeshSettings(
            partial_bytes=partial_bytes, staging_bytes=staging_bytes, num_threads=num_threads
        )
        return cls(
            host=host,
            nonce=nonce,
            settings=settings,
            cores=tuple(i for i in range(8 * _CORE_BYTES) if core_bits[i // 8] >> (i % 8) & 1),
            path=path.rstrip(b"\0").decode(),
        )


def process_group_of(group: "dist.ProcessGroup | DeviceMesh | None") -> dist.ProcessGroup:
    """Return the process group of a group or of a one-dimensional mesh axis.

    Raises:
        ConfigError: the mesh has more dimensions, or there is no group.
    """
    if group is None:
        raise ConfigError("from_group needs a process group or a mesh axis, got None")
    if isinstance(group, dist.ProcessGroup):
        return group
    if group.ndim != 1:
        raise ConfigError(
            f"a world is one axis of a mesh, got a mesh of {group.ndim} dimensions "
            f"{group.mesh_dim_names}: pass mesh['name of the axis']"
        )
    return group.get_group()


def connect(group: dist.ProcessGroup, settings: MeshSettings, timeout_s: float) -> Meeting:
    """Connect the ranks of a process group that share a host. Collective over `group`.

    Args:
        group: every rank of it takes part; used for one all-gather of bytes.
        settings: sizes that must be equal on all ranks.
        timeout_s: deadline for the ranks to find each other, seconds.

    Raises:
        TopologyError: the ranks do not lie on their hosts in equal, consecutive blocks.
        MismatchError: the ranks' settings or versions differ.
        PeerLostError, CommTimeoutError: a rank went away or did not come.
    """
    rank = dist.get_rank(group)
    with _private_folder() as folder:
        listener = native.fabric.Listener(folder)
        card = _Card(
            host=topology.host_fingerprint(),
            nonce=secrets.randbits(64),
            settings=settings,
            cores=topology.usable_cores(),
            path=listener.path,
        )
        cards = [_Card.unpack(data) for data in all_gather_bytes(card.pack(), group)]
        layout = topology.plan_host_layout(rank, [card.host for card in cards])
        _check(cards, rank)
        neighbors = [cards[peer] for peer in layout.host_ranks]
        mesh = None
        if len(neighbors) > 1:
            paths = [card.path for card in neighbors]
            mesh = native.fabric.Mesh(
                layout.local_rank,
                layout.local_size,
                listener,
                paths,
                neighbors[0].nonce,
                timeout_s,
            )
    cores_of_rank = tuple(card.cores for card in neighbors)
    return Meeting(layout=layout, mesh=mesh, cores_of_rank=cores_of_rank)


def _check(cards: list[_Card], rank: int) -> None:
    for peer, card in enumerate(cards):
        if card.settings != cards[rank].settings:
            raise MismatchError(
                f"rank {rank} asks for {cards[rank].settings}, rank {peer} for {card.settings}: "
                "these must be equal on all ranks",
                rank=rank,
                peer_rank=peer,
                operation="init",
            )


@contextmanager
def _private_folder() -> Iterator[str]:
    _sweep_stale_folders()
    folder = tempfile.mkdtemp(prefix=_FOLDER_PREFIX)  # mode 0700
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def _sweep_stale_folders() -> None:
    """Remove what a rank killed during its rendezvous, a matter of milliseconds, has left."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_FOLDER_PREFIX}*"):
        try:
            if folder.stat().st_uid == os.geteuid() and _is_stale(folder):
                shutil.rmtree(folder)
        except FileNotFoundError:
            continue  # its owner, or another rank's sweep, was quicker


def _is_stale(folder: Path) -> bool:
    # A young folder may belong to a rank between its bind and its listen, which looks the same.
    if time.time() - folder.stat().st_mtime < 60.0:
        return False
    sockets = list(folder.iterdir())
    if not sockets:
        return True
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe:
        try:
            probe.connect(str(sockets[0]))
        except ConnectionRefusedError:
            return True
    return False


def all_gather_bytes(data: bytes, group: dist.ProcessGroup) -> list[bytes]:
    """Return every rank's `data`, of the same size on all of them. Collective over `group`."""
    own = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    gathered = [torch.empty_like(own) for _ in range(dist.get_world_size(group))]
    dist.all_gather(gathered, own, group=group)
    return [bytes(tensor.tolist()) for tensor in gathered]
