"""Messages between ranks that take turns in one thread: the same engine, without processes.

For tests, proofs and simulations with many more ranks than cores. Nothing can wait here: a rank
that needs a message which has not come gives its turn to the next (`run_virtual_ranks`).
"""

from collections import Counter, deque
from collections.abc import Callable, Generator, Sequence
from typing import TypeVar

import torch

from tokenfabric.channel import Receipt, message_bytes, pack

Result = TypeVar("Result")


class VirtualMesh:
    """The connections of all virtual ranks."""

    def __init__(self, size: int, device: torch.device | str = "cpu") -> None:
        self.size = size
        self.device = torch.device(device)
        self._sent: dict[tuple[int, int], deque[torch.Tensor]] = {}
        self._posted: dict[tuple[int, int], deque[_Receipt]] = {}

    def channel(self, rank: int) -> "VirtualChannel":
        """Return the end of one rank."""
        return VirtualChannel(self, rank)

    def is_drained(self) -> bool:
        """Return whether every message was received and every receive has its message."""
        return not any((*self._sent.values(), *self._posted.values()))

    def _match(self, src: int, dst: int) -> None:
        sent = self._sent.setdefault((src, dst), deque())
        posted = self._posted.setdefault((src, dst), deque())
        while sent and posted:
            message, receipt = sent.popleft(), posted.popleft()
            assert message.numel() == receipt.into.numel(), f"{receipt.what}: sizes differ"
            receipt.into.copy_(message)
            receipt.is_here = True


class _Receipt:
    """Implements Receipt."""

    def __init__(self, into: torch.Tensor, what: str) -> None:
        self.into = into
        self.what = what
        self.is_here = False

    def is_ready(self) -> bool:
        return self.is_here

    def wait(self) -> None:
        assert self.is_here, f"{self.what}: a virtual rank cannot wait, run_virtual_ranks does"


class VirtualChannel:
    """Implements Channel. Messages wait in the mesh until their receive is posted."""

    def __init__(self, mesh: VirtualMesh, rank: int) -> None:
        self.rank = rank
        self.size = mesh.size
        self.bytes_sent: Counter[int] = Counter()
        self._mesh = mesh

    def memory(self, num_bytes: int) -> torch.Tensor:
        """See Channel. Filled with bytes that are NaN in every floating dtype."""
        return torch.full((num_bytes,), 0xFF, dtype=torch.uint8, device=self._mesh.device)

    def receive(self, peer: int, into: torch.Tensor, what: str) -> Receipt:
        """See Channel."""
        receipt = _Receipt(into, what)
        into.fill_(0xFF)  # whoever reads before the message came reads NaN
        self._mesh._posted.setdefault((peer, self.rank), deque()).append(receipt)
        self._mesh._match(peer, self.rank)
        return receipt

    def send(self, peer: int, parts: Sequence[torch.Tensor], what: str) -> None:
        """See Channel."""
        message = torch.empty(message_bytes(parts), dtype=torch.uint8, device=self._mesh.device)
        pack(parts, message)
        self.bytes_sent[peer] += message.numel()
        self._mesh._sent.setdefault((self.rank, peer), deque()).append(message)
        self._mesh._match(self.rank, peer)

    def flush(self) -> None:
        """See Channel. The mesh has taken every message."""

    def close(self) -> None:
        """See Channel."""


def run_virtual_ranks(
    size: int,
    work: Callable[["VirtualChannel"], Generator[Receipt, None, Result]],
    pick: Callable[[Sequence[int]], int] = lambda ready: ready[0],
    device: torch.device | str = "cpu",
) -> list[Result]:
    """Run `work(channel)` for every rank to its end and return what each returned.

    Args:
        size: number of ranks.
        work: a generator that yields every receipt it needs before it goes on.
        pick: which of the ranks that could go on does; the first by default.
        device: where messages lie; on a GPU all ranks share its current stream.

    Raises:
        RuntimeError: the ranks wait for each other, or messages are left over.
    """
    mesh = VirtualMesh(size, device)
    running = {rank: work(mesh.channel(rank)) for rank in range(size)}
    waiting: dict[int, Receipt | None] = dict.fromkeys(running)
    results: dict[int, Result] = {}
    while running:
        ready = [rank for rank in running if (needed := waiting[rank]) is None or needed.is_ready()]
        if not ready:
            raise RuntimeError(f"virtual ranks {sorted(running)} wait for each other")
        rank = pick(ready)
        try:
            waiting[rank] = next(running[rank])
        except StopIteration as stop:
            results[rank] = stop.value
            del running[rank]
    if not mesh.is_drained():
        raise RuntimeError("messages were sent and not received, or awaited and not sent")
    return [results[rank] for rank in range(size)]
