"""Messages between the ranks of one host: the sender writes into the receiver's memory, once."""

from collections import Counter, deque
from collections.abc import Sequence

import torch

from tokenfabric import native
from tokenfabric.channel import about, message_bytes, pack
from tokenfabric.errors import CommError, ConfigError


class SharedMemoryChannel:
    """Implements Channel over `fabric.Mailboxes`.

    A send waits until the peer has posted its receive, and so for the step of a plan in which it
    does; receives whose memory is free are best posted early.
    """

    def __init__(self, comm: native.fabric.Communicator) -> None:
        """Not collective; `memory` is.

        Args:
            comm: shared memory among the ranks; the channel's ranks are its ranks.
        """
        self.rank = comm.rank
        self.size = comm.size
        self.bytes_sent: Counter[int] = Counter()
        self._comm = comm
        self._mailboxes: native.fabric.Mailboxes | None = None
        self._segments: dict[int, torch.Tensor] = {}
        self._pending: dict[int, deque[_Receipt]] = {}

    def memory(self, num_bytes: int) -> torch.Tensor:
        """See Channel. Grows in powers of two, so that calls of growing length seldom allocate."""
        if any(self._pending.values()):
            raise ConfigError("receive memory cannot change while messages are on their way")
        own = self._segments.get(self.rank)
        if self._mailboxes is None or own is None or own.numel() < num_bytes:
            self._mailboxes = native.fabric.Mailboxes(
                self._comm, 1 << max(num_bytes - 1, 1).bit_length()
            )
            self._segments = {}
            own = self._segment(self.rank)
        return own[:num_bytes]

    def receive(self, peer: int, into: torch.Tensor, what: str) -> "_Receipt":
        """See Channel."""
        mailboxes = self._open()
        own = self._segment(self.rank)
        offset = mailboxes.data_offset + int(into.storage_offset() - own.storage_offset())
        try:
            mailboxes.post(peer, offset, into.numel())
        except CommError as error:
            raise about(error, what) from None
        receipt = _Receipt(self, peer, into.numel(), what)
        self._pending.setdefault(peer, deque()).append(receipt)
        return receipt

    def send(self, peer: int, parts: Sequence[torch.Tensor], what: str) -> None:
        """See Channel."""
        mailboxes = self._open()
        num_bytes = message_bytes(parts)
        try:
            offset, room = mailboxes.begin_send(peer)
            assert room == num_bytes, f"{what}: {num_bytes} bytes for a receive of {room}"
            start = offset - mailboxes.data_offset
            pack(parts, self._segment(peer)[start : start + num_bytes])
            mailboxes.publish(peer, num_bytes, 0)
        except CommError as error:
            raise about(error, what) from None
        self.bytes_sent[peer] += num_bytes

    def flush(self) -> None:
        """See Channel. Sends are done when they return."""

    def close(self) -> None:
        """See Channel."""
        self._mailboxes = None
        self._segments = {}
        self._pending = {}

    def _open(self) -> "native.fabric.Mailboxes":
        if self._mailboxes is None:
            raise ConfigError("a channel needs receive memory before its first message")
        return self._mailboxes

    def _segment(self, rank: int) -> torch.Tensor:
        """Return the data of a rank's segment."""
        if rank not in self._segments:
            mailboxes = self._open()
            self._segments[rank] = torch.frombuffer(
                mailboxes.segment(rank), dtype=torch.uint8, offset=mailboxes.data_offset
            )
        return self._segments[rank]

    def _receive_until(self, wanted: "_Receipt") -> None:
        """Take messages of a peer, which come in order, up to the wanted one."""
        pending = self._pending[wanted.peer]
        while not wanted.is_here:
            receipt = pending[0]
            try:
                num_bytes, _ = self._open().receive(receipt.peer)
            except CommError as error:
                raise about(error, receipt.what) from None
            assert num_bytes == receipt.num_bytes, f"{receipt.what}: {num_bytes} bytes came"
            receipt.is_here = True
            pending.popleft()


class _Receipt:
    """Implements Receipt."""

    __slots__ = ("_channel", "is_here", "num_bytes", "peer", "what")

    def __init__(self, channel: SharedMemoryChannel, peer: int, num_bytes: int, what: str) -> None:
        self._channel = channel
        self.peer = peer
        self.num_bytes = num_bytes
        self.what = what
        self.is_here = False

    def is_ready(self) -> bool:
        return self.is_here

    def wait(self) -> None:
        self._channel._receive_until(self)
