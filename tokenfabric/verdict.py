"""Why a world on several hosts is broken: one record that is passed from rank to rank.

The same fields as the native verdict of a host's ranks, with ranks of the whole world.
"""

import struct
from dataclasses import dataclass
from enum import IntEnum

from tokenfabric.errors import CommError, CommTimeoutError, PeerLostError

_WIRE = struct.Struct("<4s4BI")
_MAGIC = b"tfv1"


class VerdictKind(IntEnum):
    """What happened. Values are those of the native enumeration."""

    NONE = 0
    """Nothing: sent as a farewell, by a rank that closes a world which works."""
    PEER_LOST = 1
    TIMEOUT = 2
    ABORTED = 3
    """A rank left a collective early, by an exception."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """Who is to blame for what, as `reporter` found."""

    NUM_BYTES = _WIRE.size

    kind: VerdictKind
    blamed: int
    reporter: int
    operation: int = 0
    """Native number of the collective."""
    epoch: int = 0
    """Of the host's barriers where a host's ranks found it, else the number of the collective."""

    def pack(self) -> bytes:
        """Return the `NUM_BYTES` that go over a connection."""
        return _WIRE.pack(
            _MAGIC, self.kind, self.blamed, self.reporter, self.operation, self.epoch & 0xFFFFFFFF
        )

    @classmethod
    def unpack(cls, data: bytes) -> "Verdict":
        """Parse what a peer sent.

        Raises:
            ValueError: it is not a verdict.
        """
        magic, kind, blamed, reporter, operation, epoch = _WIRE.unpack(data)
        if magic != _MAGIC:
            raise ValueError(f"not a verdict: {magic!r}")
        return cls(
            kind=VerdictKind(kind),
            blamed=blamed,
            reporter=reporter,
            operation=operation,
            epoch=epoch,
        )

    def error(self, *, rank: int, size: int, timeout_s: float, operation: str) -> CommError:
        """Return what rank `rank` raises.

        Args:
            rank: the rank that raises.
            size: ranks of the world.
            timeout_s: the world's deadline, for the text.
            operation: name of `self.operation`.
        """
        what = {
            VerdictKind.TIMEOUT: f"rank {self.blamed} did not signal within {timeout_s:g} s",
            VerdictKind.ABORTED: f"rank {self.blamed} left before the collective was done",
        }.get(self.kind, f"rank {self.blamed} is gone: its process died or closed its world")
        error = CommTimeoutError if self.kind is VerdictKind.TIMEOUT else PeerLostError
        return error(
            f"{what} in {operation} (epoch {self.epoch}), as rank {self.reporter} of {size} found; "
            f"this is rank {rank}. The world is broken: close it and build a new one.",
            rank=rank,
            peer_rank=self.blamed,
            operation=operation,
            epoch=self.epoch,
        )
