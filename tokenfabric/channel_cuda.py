"""Messages between the GPUs of one host, by copy engines: no kernel runs, no host waits for a GPU.

What is computed and what is moved meet on the GPU: a receipt's `wait` makes the current stream
wait, a send reads what the current stream has made before. The hosts meet only to say where a
message goes, when both have come to it.

The native part, csrc/fabric/gpu_messages.hpp, has the streams, the signals and the deadlines.
"""

from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import Protocol

import torch

from tokenfabric import native
from tokenfabric.channel import about, message_bytes
from tokenfabric.errors import CommError, ConfigError

DRIVER_LIBRARY = "libcuda.so.1"
# Eight steps to a doubling: at most an eighth more memory than asked for, and seldom a new one.
_STEPS_PER_DOUBLING = 8
_LEAST_STEP_BYTES = 1 << 16


class Memory(Protocol):
    """What all ranks have mapped, as `cuda.memory.CudaMemory` has it."""

    by_rank: list[int]

    def tensor(
        self, rank: int, shape: Sequence[int], dtype: torch.dtype, offset_bytes: int
    ) -> torch.Tensor: ...


class CopyEngineChannel:
    """Implements Channel for tensors on GPUs; differs from it in three points.

    Nothing waits for the GPU: `Receipt.wait` and `flush` order what the current stream does next.
    Tensors that were sent may be overwritten by what the current stream does after `flush`, not
    before; the channel keeps them alive. And a message that does not come is found by a watchdog:
    at the deadline it fills the message's memory with NaN, lets the streams go on and breaks the
    world; the next call of this channel raises.
    """

    def __init__(
        self,
        comm: "native.fabric.Communicator",
        allocate: Callable[[int], Memory],
        stream: Callable[[], int],
        *,
        device_index: int,
        timeout_s: float,
        driver_library: str = DRIVER_LIBRARY,
    ) -> None:
        """Not collective; `memory` is.

        Args:
            comm: shared host memory among the ranks; the channel's ranks are its ranks.
            allocate: makes GPU memory that all ranks map, of as many bytes; collective. When it
                returns the GPUs of all ranks have done what was enqueued before.
            stream: the stream on which this rank computes, ordered after all it returned before.
            device_index: this rank's GPU.
            timeout_s: deadline of every wait of a stream, seconds, from when it comes to it.
            driver_library: the driver, found by dlopen.
        """
        self.rank = comm.rank
        self.size = comm.size
        self.bytes_sent: Counter[int] = Counter()
        self._comm = comm
        self._allocate = allocate
        self._stream = stream
        self._device_index = device_index
        self._timeout_s = timeout_s
        self._driver_library = driver_library
        self._messages: native.cuda.GpuMessages | None = None
        self._postings: native.fabric.Mailboxes | None = None
        self._memory: Memory | None = None
        self._own = torch.empty(0, dtype=torch.uint8)
        self._num_unawaited = 0
        # (peer, number, tensors) of sends that may still be read.
        self._sending: deque[tuple[int, int, Sequence[torch.Tensor]]] = deque()
        # Parts of this rank's memory that are being sent on.
        self._passed_on: list[tuple[int, int]] = []

    def check(self) -> None:
        """Raise what went wrong in the streams since the last call, and refuse to be captured.

        Raises:
            CommTimeoutError, PeerLostError: naming the message.
            ConfigError: the current stream is being captured in a CUDA graph.
        """
        if self._messages is not None:
            self._messages.check(self._stream())

    def failure(self) -> CommError | None:
        """Return what `check` would raise as a failure; reads host memory only."""
        if self._messages is not None:
            try:
                self._messages.check_failure()
            except CommError as error:
                return error
        return None

    def memory(self, num_bytes: int) -> torch.Tensor:
        """See Channel. A growing memory is the one thing here that waits for the GPU."""
        if self._messages is None:
            self._messages = native.cuda.GpuMessages(
                self._comm, self._device_index, self._timeout_s, self._driver_library
            )
        self._messages.check(self._stream())
        if self._num_unawaited:
            raise ConfigError("receive memory cannot change while messages are on their way")
        if self._own.numel() < num_bytes or self._memory is None:
            size = _rounded(num_bytes)
            # The old memory lives until all ranks have come here and their GPUs are done with it.
            new = self._allocate(size)
            self._postings = native.fabric.Mailboxes(self._comm, size, is_elsewhere=True)
            self._memory = new
            self._own = new.tensor(self.rank, (size,), torch.uint8, 0)
        return self._own[:num_bytes]

    def receive(self, peer: int, into: torch.Tensor, what: str) -> "_Receipt":
        """See Channel."""
        messages, postings, _ = self._open()
        start = int(into.storage_offset() - self._own.storage_offset())
        stop = start + into.numel()
        is_passed_on = any(first < stop and start < last for first, last in self._passed_on)
        # Its errors name the message that failed, which is another.
        number = messages.grant(peer, self._stream(), is_passed_on)
        try:
            postings.post(peer, start, into.numel())
        except CommError as error:
            raise about(error, what) from None
        self._num_unawaited += 1
        return _Receipt(self, peer, number, into, what)

    def send(self, peer: int, parts: Sequence[torch.Tensor], what: str) -> None:
        """See Channel. Parts without gaps are read where they are, others packed before."""
        messages, postings, memory = self._open()
        num_bytes = message_bytes(parts)
        try:
            offset, room = postings.begin_send(peer)
        except CommError as error:
            raise about(error, what) from None
        assert room == num_bytes, f"{what}: {num_bytes} bytes for a receive of {room}"
        kept = [part.contiguous() for part in parts if part.numel()]
        pieces = []
        to = memory.by_rank[peer] + offset
        for part in kept:
            size = part.numel() * part.element_size()
            pieces.append((to, part.data_ptr(), size))
            to += size
        number = messages.send(peer, pieces, self._stream(), what)
        while self._sending and messages.has_left(*self._sending[0][:2]):
            self._sending.popleft()
        self._sending.append((peer, number, kept))
        own = memory.by_rank[self.rank]
        for _, address, size in pieces:
            if 0 <= address - own < self._own.numel():
                self._passed_on.append((address - own, address - own + size))
        self.bytes_sent[peer] += num_bytes

    def flush(self) -> None:
        """See Channel. What the current stream does next comes after all sends; no host waits."""
        if self._messages is not None:
            self._messages.join(self._stream())
        # Memory given back from here on is given back to the current stream.
        self._sending.clear()
        self._passed_on.clear()

    def close(self) -> None:
        """See Channel. Waits for this rank's GPU, at most for the deadlines of its waits."""
        if self._messages is not None:
            self._messages.close()
        self._messages = self._postings = self._memory = None
        self._own = torch.empty(0, dtype=torch.uint8)
        self._sending.clear()

    def _open(self) -> "tuple[native.cuda.GpuMessages, native.fabric.Mailboxes, Memory]":
        if self._messages is None or self._postings is None or self._memory is None:
            raise ConfigError("a channel needs receive memory before its first message")
        return self._messages, self._postings, self._memory

    def _await(self, receipt: "_Receipt") -> None:
        messages, _, _ = self._open()
        self._num_unawaited -= 1
        into = receipt.into
        messages.wait_for(
            receipt.peer, receipt.number, into.data_ptr(), into.numel(), self._stream(),
            receipt.what,
        )  # fmt: skip


class _Receipt:
    """Implements Receipt."""

    __slots__ = ("_channel", "_is_awaited", "into", "number", "peer", "what")

    def __init__(
        self, channel: CopyEngineChannel, peer: int, number: int, into: torch.Tensor, what: str
    ) -> None:
        self._channel = channel
        self._is_awaited = False
        self.peer = peer
        self.number = number
        self.into = into
        self.what = what

    def is_ready(self) -> bool:
        return True  # for the host: it is the stream that waits

    def wait(self) -> None:
        if not self._is_awaited:
            self._is_awaited = True
            self._channel._await(self)


def _rounded(num_bytes: int) -> int:
    doubled = 1 << max(num_bytes - 1, 1).bit_length()
    step = max(_LEAST_STEP_BYTES, doubled // (2 * _STEPS_PER_DOUBLING))
    return -(-max(num_bytes, 1) // step) * step
