"""Messages between ranks on several hosts: by shared memory within one, else torch.distributed."""

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist

from tokenfabric.channel import Receipt, message_bytes
from tokenfabric.channel_distributed import DistributedChannel
from tokenfabric.channel_shared import SharedMemoryChannel
from tokenfabric.errors import CommTimeoutError, PeerLostError
from tokenfabric.records import PeerGoneError, PeerSilentError

if TYPE_CHECKING:
    from tokenfabric.hosts import Hosts


class HostsChannel:
    """Implements Channel. Used inside `Hosts.collective`, which turns its errors into a verdict."""

    def __init__(self, hosts: "Hosts", group: dist.ProcessGroup) -> None:
        """Not collective; `memory` is."""
        layout = hosts.layout
        self.rank, self.size = layout.rank, layout.size
        self.bytes_sent: Counter[int] = Counter()
        self._local_ranks = {rank: local for local, rank in enumerate(layout.host_ranks)}
        self._near = SharedMemoryChannel(hosts.comm) if layout.local_size > 1 else None
        self._far = DistributedChannel(group, hosts.timeout_s)

    def memory(self, num_bytes: int) -> torch.Tensor:
        """See Channel."""
        return (self._near or self._far).memory(num_bytes)

    def receive(self, peer: int, into: torch.Tensor, what: str) -> Receipt:
        """See Channel."""
        if self._near is not None and peer in self._local_ranks:
            return self._near.receive(self._local_ranks[peer], into, what)
        return _Far(self._far.receive(peer, into, what))

    def send(self, peer: int, parts: Sequence[torch.Tensor], what: str) -> None:
        """See Channel."""
        if self._near is not None and peer in self._local_ranks:
            self._near.send(self._local_ranks[peer], parts, what)
        else:
            try:
                self._far.send(peer, parts, what)
            except (PeerLostError, CommTimeoutError) as error:
                raise _ended(error) from error
        self.bytes_sent[peer] += message_bytes(parts)

    def flush(self) -> None:
        """See Channel."""
        try:
            self._far.flush()
        except (PeerLostError, CommTimeoutError) as error:
            raise _ended(error) from error

    def close(self) -> None:
        """See Channel."""
        if self._near is not None:
            self._near.close()
        self._far.close()


class _Far:
    """Implements Receipt for a message of another host."""

    __slots__ = ("_receipt",)

    def __init__(self, receipt: Receipt) -> None:
        self._receipt = receipt

    def is_ready(self) -> bool:
        return self._receipt.is_ready()

    def wait(self) -> None:
        try:
            self._receipt.wait()
        except (PeerLostError, CommTimeoutError) as error:
            raise _ended(error) from error


def _ended(error: PeerLostError | CommTimeoutError) -> PeerGoneError | PeerSilentError:
    """Return what torch.distributed's error means to `Hosts.collective`.

    Shared memory's errors have a verdict already; these are only what one rank saw.
    """
    kind = PeerGoneError if isinstance(error, PeerLostError) else PeerSilentError
    return kind(error.peer_rank)
