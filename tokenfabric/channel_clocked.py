"""Messages on a clock: any channel, whose sends and waits are measured."""

from collections.abc import Sequence

import torch

from tokenfabric.channel import Channel, Receipt
from tokenfabric.comm_clock import CommClock


class ClockedChannel:
    """Implements Channel: another one, whose sends and waits run on a clock.

    Posting a receive is not timed: it waits for nothing.
    """

    def __init__(self, channel: Channel, clock: CommClock) -> None:
        """Not collective.

        Args:
            channel: closed by this one's `close`.
            clock: of the rank.
        """
        self.rank, self.size = channel.rank, channel.size
        self.bytes_sent = channel.bytes_sent
        self.inner = channel
        self._clock = clock

    def memory(self, num_bytes: int) -> torch.Tensor:
        """See Channel."""
        return self.inner.memory(num_bytes)

    def receive(self, peer: int, into: torch.Tensor, what: str) -> Receipt:
        """See Channel."""
        return _ClockedReceipt(self.inner.receive(peer, into, what), self._clock)

    def send(self, peer: int, parts: Sequence[torch.Tensor], what: str) -> None:
        """See Channel."""
        with self._clock:
            self.inner.send(peer, parts, what)

    def flush(self) -> None:
        """See Channel."""
        with self._clock:
            self.inner.flush()

    def close(self) -> None:
        """See Channel."""
        self.inner.close()


class _ClockedReceipt:
    """Implements Receipt."""

    __slots__ = ("_clock", "_receipt")

    def __init__(self, receipt: Receipt, clock: CommClock) -> None:
        self._receipt = receipt
        self._clock = clock

    def is_ready(self) -> bool:
        return self._receipt.is_ready()

    def wait(self) -> None:
        with self._clock:
            self._receipt.wait()
