"""Messages from rank to rank: what every transport offers, and how tensors lie in a message.

Transports: channel_shared (ranks of one host), channel_distributed (torch.distributed), both
together in channel_hosts (several hosts), channel_cuda (GPUs of one host, where it is streams that
wait) and channel_virtual (ranks that take turns in one thread, for tests and proofs).

Messages of a pair of ranks are matched in order: the k-th receive from a peer takes the k-th send
of that peer. A receive is posted before its message is due and waited for when it is needed; a send
has taken its data when it returns. Every wait ends at the world's deadline and names the message.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Protocol

import torch

from tokenfabric.errors import CommError


class Receipt(Protocol):
    """A message on its way."""

    def is_ready(self) -> bool:
        """Return whether `wait` would return at once. May be False until `wait` is called."""
        ...

    def wait(self) -> None:
        """Wait until the message is where its receive was posted.

        Raises:
            PeerLostError, CommTimeoutError: it will not come; the text names the message.
        """
        ...


class Channel(Protocol):
    """One rank's end of all connections."""

    rank: int
    size: int
    bytes_sent: Counter[int]
    """Payload bytes, by peer."""

    def memory(self, num_bytes: int) -> torch.Tensor:
        """Return `num_bytes` of memory, uint8, in which this rank receives. Collective.

        Valid until the next call; earlier receives must be over. All ranks ask for as much.
        """
        ...

    def receive(self, peer: int, into: torch.Tensor, what: str) -> Receipt:
        """Post the next receive from `peer`.

        Args:
            peer: who sends.
            into: a contiguous part of `memory`; its size is the message's.
            what: the message, in words, for errors.
        """
        ...

    def send(self, peer: int, parts: Sequence[torch.Tensor], what: str) -> None:
        """Send tensors as one message, laid one after the other without gaps.

        They may be overwritten when this returns. It waits for the peer's receive where the
        transport has no memory of its own.

        Args:
            peer: who receives.
            parts: of any shape and stride, larger element sizes first, so that each part is aligned
                where it lands.
            what: the message, in words, for errors.

        Raises:
            PeerLostError, CommTimeoutError: the peer is gone or takes nothing.
        """
        ...

    def flush(self) -> None:
        """Wait until all sends have left this rank: the end of a collective.

        Raises:
            PeerLostError, CommTimeoutError: as `send`.
        """
        ...

    def close(self) -> None:
        """Give memory and connections back. Not collective."""
        ...


def message_bytes(parts: Sequence[torch.Tensor]) -> int:
    """Return the size of a message."""
    return sum(part.numel() * part.element_size() for part in parts)


def pack(parts: Sequence[torch.Tensor], into: torch.Tensor) -> None:
    """Lay `parts` one after the other into `into`, uint8 of exactly their size."""
    assert message_bytes(parts) == into.numel(), "a receive is as large as its send"
    start = 0
    for part in parts:
        stop = start + part.numel() * part.element_size()
        into[start:stop].view(part.dtype).view(part.shape).copy_(part)
        start = stop


def unpack(
    message: torch.Tensor, layout: Sequence[tuple[tuple[int, ...], torch.dtype]]
) -> list[torch.Tensor]:
    """Return a message's parts as views: the inverse of `pack`.

    Args:
        message: uint8.
        layout: shape and dtype of every part.
    """
    parts = []
    start = 0
    for shape, dtype in layout:
        stop = start + torch.Size(shape).numel() * dtype.itemsize
        parts.append(message[start:stop].view(dtype).view(shape))
        start = stop
    assert start == message.numel(), "a message is as large as its parts"
    return parts


def about(error: CommError, what: str) -> CommError:
    """Return an error of the same kind that says which message it is about."""
    return type(error)(
        f"{what}: {error}",
        rank=error.rank,
        peer_rank=error.peer_rank,
        operation=error.operation,
        epoch=error.epoch,
    )
