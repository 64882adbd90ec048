"""What ranks on different hosts compare before a collective: one fixed-size record of the call.

Inside a host the native barriers compare. Here each rank sends its record along its rail and takes
in those of the others; hosts.py decides what follows.
"""

import select
import socket
import struct
import time
from dataclasses import dataclass

from tokenfabric import native
from tokenfabric.errors import MismatchError, PeerLostError
from tokenfabric.links import receive_exactly

_RECORD = struct.Struct("<4s 5I Q")
_MAGIC = b"tfc1"


class WaitEndedError(Exception):
    """A wait between hosts ended without success; becomes the world's verdict."""

    def __init__(self, peer: int = -1) -> None:
        super().__init__(peer)
        self.peer = peer


class PeerGoneError(WaitEndedError):
    """The peer's connection ended."""


class PeerSilentError(WaitEndedError):
    """The peer did not answer before the deadline."""


class ExchangeFailedError(WaitEndedError):
    """torch.distributed raised."""


class VerdictReachedError(WaitEndedError):
    """Another rank has found out that the world is broken."""


@dataclass(frozen=True, slots=True)
class Call:
    """What must be equal on all ranks that make a collective."""

    operation: int
    """native.fabric.OP_*."""
    dtype: int = 0
    rows: int = 0
    row_elems: int = 0
    options: int = 0
    """Hash of all else."""

    def pack(self, *, is_agreed: bool) -> bytes:
        """Return the record for the other hosts; `is_agreed`: the ranks of this one do agree."""
        return _RECORD.pack(
            _MAGIC, is_agreed, self.operation, self.dtype, self.row_elems, self.options, self.rows
        )

    def __str__(self) -> str:
        name = native.fabric.operation_name(self.operation)
        return f"{name}({self.rows} x {self.row_elems}, dtype {self.dtype}, {self.options:08x})"


class Records:
    """The connections on which one rank exchanges records."""

    def __init__(self, rank: int, links: dict[int, socket.socket], broken_fd: int) -> None:
        """Take connections by rank, and what is readable once the world is broken."""
        self._rank, self._links, self._broken_fd = rank, links, broken_fd

    def exchange(self, record: bytes, deadline_s: float) -> dict[int, bytes]:
        """Send `record` to every peer and return theirs.

        Args:
            record: `Call.pack`.
            deadline_s: of time.monotonic().

        Raises:
            PeerGoneError, PeerSilentError, VerdictReachedError: a peer's record does not come.
        """
        for peer, link in self._links.items():
            try:
                link.sendall(record)
            except OSError:
                raise PeerGoneError(peer) from None
        missing = {link.fileno(): peer for peer, link in self._links.items()}
        poller = select.poll()
        for descriptor in (self._broken_fd, *missing):
            poller.register(descriptor, select.POLLIN)
        records: dict[int, bytes] = {}
        while missing:
            left_s = deadline_s - time.monotonic()
            ready = [descriptor for descriptor, _ in poller.poll(max(0.0, left_s * 1e3))]
            if not ready:
                raise PeerSilentError(min(missing.values()))
            # First what is there: a rank that dies after it has sent its record is another's find.
            for descriptor in missing.keys() & set(ready):
                peer = missing.pop(descriptor)
                poller.unregister(descriptor)
                try:
                    records[peer] = receive_exactly(
                        self._links[peer], _RECORD.size, self._rank, peer
                    )
                except PeerLostError:
                    raise PeerGoneError(peer) from None
            if missing and self._broken_fd in ready:
                raise VerdictReachedError
        return records


def mismatch(rank: int, peer: int, call: Call, record: bytes, epoch: int) -> MismatchError:
    """Return what `rank` raises when it makes `call` and `peer` has sent another record."""
    magic, is_agreed, operation, dtype, row_elems, options, rows = _RECORD.unpack(record)
    assert magic == _MAGIC
    theirs = Call(operation, dtype, rows, row_elems, options)
    what = (
        f"rank {peer} called {theirs}"
        if is_agreed
        else f"the ranks on the host of rank {peer} do not agree on one call"
    )
    return MismatchError(
        f"rank {rank} called {call} but {what} (call {epoch}). Nothing was read or written; all "
        "ranks raise this and the world stays usable. Every rank must make the same calls in the "
        "same order with the same shapes, dtype, eps, algorithm and residual layout.",
        rank=rank,
        peer_rank=peer,
        operation=native.fabric.operation_name(call.operation),
        epoch=epoch,
    )
