"""TCP connections between the ranks of a world on several hosts, made once when it is built.

Two kinds: `records` between the ranks of a rail, on which a collective's callers compare what they
are about to do (hosts.py), and `watch` between all ranks of a rail or a host, which says when one
of them goes (watch.py). No pickle: fixed-size headers, and a secret that strangers do not have.
"""

import secrets
import socket
import struct
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from enum import IntEnum

import torch.distributed as dist

from tokenfabric import env
from tokenfabric.errors import CommTimeoutError, PeerLostError, TopologyError
from tokenfabric.rendezvous import all_gather_bytes
from tokenfabric.topology import HostLayout

_MAGIC = b"tokenfabric-link"
_SECRET_BYTES = 16
_ADDRESS = struct.Struct(f"<{_SECRET_BYTES}s H 62s")  # secret, port, numeric address
_HELLO = struct.Struct(f"<16s {_SECRET_BYTES}s H B")  # magic, secret, rank, purpose
# A host that loses power sends no farewell: probes find out after idle + count * interval seconds.
_KEEPALIVE_S = {socket.TCP_KEEPIDLE: 5, socket.TCP_KEEPINTVL: 2, socket.TCP_KEEPCNT: 3}


class _Purpose(IntEnum):
    RECORDS = 0
    WATCH = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Links:
    """Open connections of one rank, by the rank at the other end."""

    records: dict[int, socket.socket]
    watch: dict[int, socket.socket]

    def close(self) -> None:
        """Close all of them."""
        for link in (*self.records.values(), *self.watch.values()):
            link.close()


def connect_links(group: dist.ProcessGroup, layout: HostLayout, timeout_s: float) -> Links:
    """Connect this rank to those of its rail and its host. Collective over `group`.

    Args:
        group: all ranks of the world; used for one all-gather of bytes.
        layout: how they lie on their hosts.
        timeout_s: deadline of every wait, seconds.

    Raises:
        TopologyError: an address cannot be reached.
        CommTimeoutError: a rank did not connect.
    """
    wanted = {(peer, _Purpose.WATCH) for peer in (*layout.rail_ranks, *layout.host_ranks)}
    wanted |= {(peer, _Purpose.RECORDS) for peer in layout.rail_ranks}
    wanted = {(peer, purpose) for peer, purpose in wanted if peer != layout.rank}
    with ExitStack() as undo:
        listener = undo.enter_context(_listen(_own_address(), backlog=len(wanted)))
        addresses = _all_gather_addresses(listener, group)
        secret = addresses[0][0]
        links: dict[tuple[int, _Purpose], socket.socket] = {}
        deadline_s = time.monotonic() + timeout_s
        # A connection completes into the backlog without its owner's help: no order can deadlock.
        for peer, purpose in sorted(pair for pair in wanted if pair[0] < layout.rank):
            _, host, port = addresses[peer]
            link = _connect(layout.rank, peer, (host, port), deadline_s)
            links[peer, purpose] = undo.enter_context(link)
            link.sendall(_HELLO.pack(_MAGIC, secret, layout.rank, purpose))
        while missing := sorted(wanted - links.keys()):
            caller, hello = _accept(listener, deadline_s, layout.rank, missing[0][0])
            magic, their_secret, peer, purpose = _HELLO.unpack(hello)
            is_ours = magic == _MAGIC and secrets.compare_digest(their_secret, secret)
            if not is_ours or (peer, purpose) not in missing:
                caller.close()  # a port scan, or another job: not an error
                continue
            links[peer, _Purpose(purpose)] = undo.enter_context(caller)
        for link in links.values():
            _configure(link)
        listener.close()
        undo.pop_all()
    return Links(
        records={peer: link for (peer, what), link in links.items() if what is _Purpose.RECORDS},
        watch={peer: link for (peer, what), link in links.items() if what is _Purpose.WATCH},
    )


def _own_address() -> str:
    """Return this host's address on the interface through which it reaches MASTER_ADDR."""
    master = env.master_addr()
    if master is None:
        return "127.0.0.1"
    try:
        family, _, _, _, target = socket.getaddrinfo(master, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect(target)  # sends nothing: only asks the routing table
            return str(probe.getsockname()[0])
    except OSError as error:
        raise TopologyError(
            f"no route from this host to MASTER_ADDR={master}: {error}. Set it to an address that "
            "all hosts can reach"
        ) from error


def _listen(host: str, backlog: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, 0), family=family, backlog=max(backlog, 1))


def _all_gather_addresses(
    listener: socket.socket, group: dist.ProcessGroup
) -> Sequence[tuple[bytes, str, int]]:
    """Return (secret, host, port) of every rank."""
    host, port = listener.getsockname()[:2]
    own = _ADDRESS.pack(secrets.token_bytes(_SECRET_BYTES), port, host.encode())
    unpacked = [_ADDRESS.unpack(data) for data in all_gather_bytes(own, group)]
    return [(secret, name.rstrip(b"\0").decode(), port) for secret, port, name in unpacked]


def _connect(rank: int, peer: int, address: tuple[str, int], deadline_s: float) -> socket.socket:
    try:
        return socket.create_connection(address, timeout=max(0.001, deadline_s - time.monotonic()))
    except OSError as error:
        raise TopologyError(
            f"rank {rank} cannot reach rank {peer} at {address[0]}:{address[1]}: {error}. Hosts "
            "reach each other on the interface that leads to MASTER_ADDR; if that name is a "
            "loopback address on its own host, set MASTER_ADDR to a number"
        ) from error


def _accept(
    listener: socket.socket, deadline_s: float, rank: int, missing: int
) -> tuple[socket.socket, bytes]:
    """Return the next connection and its hello."""
    while True:
        listener.settimeout(max(0.001, deadline_s - time.monotonic()))
        try:
            caller, _ = listener.accept()
        except TimeoutError:
            raise CommTimeoutError(
                f"rank {missing} did not connect to rank {rank} before the deadline",
                rank=rank,
                peer_rank=missing,
                operation="init",
            ) from None
        caller.settimeout(max(0.001, deadline_s - time.monotonic()))
        try:
            return caller, receive_exactly(caller, _HELLO.size, rank, missing)
        except PeerLostError:
            caller.close()  # connected and said nothing: not one of ours


def _configure(link: socket.socket) -> None:
    link.settimeout(None)
    link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in _KEEPALIVE_S.items():
        link.setsockopt(socket.IPPROTO_TCP, option, value)


def receive_exactly(link: socket.socket, num_bytes: int, rank: int, peer: int) -> bytes:
    """Return the next `num_bytes` of a connection.

    Raises:
        PeerLostError: it ends before, or times out if it has a timeout.
    """
    data = b""
    while len(data) < num_bytes:
        try:
            piece = link.recv(num_bytes - len(data))
        except OSError:
            piece = b""
        if not piece:
            raise PeerLostError(
                f"rank {peer} closed its connection to rank {rank}", rank=rank, peer_rank=peer
            )
        data += piece
    return data
