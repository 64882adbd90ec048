"""Messages over torch.distributed (gloo): between hosts, or wherever ranks share no memory."""

import datetime
import time
from collections import Counter, deque
from collections.abc import Sequence

import torch
import torch.distributed as dist

from tokenfabric.channel import message_bytes, pack
from tokenfabric.errors import CommTimeoutError, PeerLostError

# Messages that may be under way before the oldest is waited for: two steps of a plan with all
# peers of a large world, and a bound on the memory they hold.
_MOST_SENDING = 16


class DistributedChannel:
    """Implements Channel over a process group.

    gloo matches messages of a pair by tag and order, NCCL by order alone: both see the order in
    which a plan lists them, the same on both sides.
    """

    def __init__(self, group: dist.ProcessGroup, timeout_s: float) -> None:
        """Not collective.

        Args:
            group: the ranks; the channel's ranks are ranks of the group.
            timeout_s: deadline of every wait, seconds.
        """
        self.rank = dist.get_rank(group)
        self.size = dist.get_world_size(group)
        self.bytes_sent: Counter[int] = Counter()
        self._group = group
        self.timeout_s = timeout_s
        # Sends read their memory until they are done.
        self._sending: deque[tuple[_Work, torch.Tensor]] = deque()

    def memory(self, num_bytes: int) -> torch.Tensor:
        """See Channel."""
        return torch.empty(num_bytes, dtype=torch.uint8)

    def receive(self, peer: int, into: torch.Tensor, what: str) -> "_Work":
        """See Channel."""
        work = dist.irecv(into, group=self._group, group_src=peer)
        assert work is not None, "this rank is in its own group"
        return _Work(self, work, peer, what)

    def send(self, peer: int, parts: Sequence[torch.Tensor], what: str) -> None:
        """See Channel. The message is kept until it is gone."""
        message = torch.empty(message_bytes(parts), dtype=torch.uint8)
        pack(parts, message)
        work = dist.isend(message, group=self._group, group_dst=peer)
        assert work is not None, "this rank is in its own group"
        while len(self._sending) >= _MOST_SENDING:
            self._sending.popleft()[0].wait()
        self._sending.append((_Work(self, work, peer, what), message))
        self.bytes_sent[peer] += message.numel()

    def flush(self) -> None:
        """See Channel. gloo reads a message until its receiver has all of it."""
        while self._sending:
            self._sending.popleft()[0].wait()

    def close(self) -> None:
        """See Channel."""
        self._sending.clear()


class _Work:
    """Implements Receipt."""

    def __init__(self, channel: DistributedChannel, work: dist.Work, peer: int, what: str) -> None:
        self._channel = channel
        self._work = work
        self._peer = peer
        self._what = what
        self._is_here = False

    def is_ready(self) -> bool:
        return self._is_here  # gloo learns of a message's end only by waiting for it

    def wait(self) -> None:
        if self._is_here:
            return
        rank, timeout_s = self._channel.rank, self._channel.timeout_s
        started_s = time.monotonic()
        try:
            # In one piece: gloo closes its connections when a wait for a message runs out of time.
            self._work.wait(datetime.timedelta(seconds=timeout_s))
        except RuntimeError as error:
            if time.monotonic() - started_s < timeout_s:
                raise PeerLostError(
                    f"{self._what}: rank {self._peer} is gone, or the connection to it; this is "
                    f"rank {rank}",
                    rank=rank,
                    peer_rank=self._peer,
                    operation="messages",
                ) from error
            raise CommTimeoutError(
                f"{self._what}: rank {self._peer} did not answer within {timeout_s:g} s; this is "
                f"rank {rank}",
                rank=rank,
                peer_rank=self._peer,
                operation="messages",
            ) from error
        self._is_here = True
