"""Streams and events that only note what is issued, and a check that all of it is ordered.

`Recorder` runs real tensor operations at once, in the order of issue, and notes for each the stream
that was current and the bytes that it read and wrote. `Trace` keeps for every stream what it is
known to come after (a vector clock), as a device would order it, and notes as mistakes:

- two operations on different streams that touch the same bytes, one of them writing, unordered;
- memory that is given back on the host and used again by its own stream, as torch's allocator
  would, while another stream may still use it; `record_stream` puts that right.
"""

import contextlib
from bisect import bisect_right, insort
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

Clock = dict[int, int]
"""By stream, how many of its operations are known to have ended."""


@dataclass
class Access:
    """Bytes that one operation touched."""

    stream: int
    moment: int
    start: int
    stop: int
    is_write: bool
    what: str


@dataclass
class Memory:
    """One allocation."""

    stream: int
    accesses: list[Access] = field(default_factory=list)
    recorded: set[int] = field(default_factory=set)
    """Streams that `record_stream` named."""


class Trace:
    """What was issued, and what of it is wrong."""

    def __init__(self) -> None:
        self.mistakes: list[str] = []
        self.num_accesses: dict[int, int] = defaultdict(int)
        self._clocks: dict[int, Clock] = defaultdict(lambda: defaultdict(int))
        self._events: dict[int, Clock] = {}
        self._given_back: dict[int, list[Memory]] = defaultdict(list)

    def record(self, event: int, stream: int) -> None:
        """The event stands for what the stream was given until now."""
        self._events[event] = dict(self._clocks[stream])

    def wait(self, stream: int, event: int) -> None:
        """What comes next on the stream comes after the event; one never recorded is no wait."""
        clock = self._clocks[stream]
        for other, moment in self._events.get(event, {}).items():
            clock[other] = max(clock[other], moment)

    def begin(self, stream: int) -> int:
        """An operation is issued: its stream may use memory again that was given back there."""
        for memory in self._given_back.pop(stream, ()):
            for access in memory.accesses:
                is_safe = access.stream == stream or access.stream in memory.recorded
                if not is_safe and not self._is_after(stream, access):
                    self.mistakes.append(
                        f"memory of stream {stream} is used again while {access.what} may use it "
                        f"on stream {access.stream}"
                    )
        self._clocks[stream][stream] += 1
        return self._clocks[stream][stream]

    def touch(self, memory: Memory, access: Access) -> None:
        """The operation that has just begun touches some bytes."""
        self.num_accesses[access.stream] += 1
        for other in memory.accesses:
            overlaps = other.start < access.stop and access.start < other.stop
            conflicts = other.is_write or access.is_write
            if overlaps and conflicts and not self._is_after(access.stream, other):
                self.mistakes.append(
                    f"{access.what} on stream {access.stream} is not ordered after {other.what} "
                    f"on stream {other.stream}"
                )
        memory.accesses = [it for it in memory.accesses if not _covers(access, it)]
        memory.accesses.append(access)

    def give_back(self, memory: Memory) -> None:
        """The host has dropped the last tensor of an allocation."""
        self._given_back[memory.stream].append(memory)

    def _is_after(self, stream: int, access: Access) -> bool:
        return access.stream == stream or self._clocks[stream][access.stream] >= access.moment


def _covers(new: Access, old: Access) -> bool:
    """Whether whatever conflicts with the old one conflicts with the new one."""
    same = (new.stream, new.start, new.stop) == (old.stream, old.start, old.stop)
    return same and (new.is_write or not old.is_write)


class NotedStreams:
    """Implements Streams: streams and events are numbers."""

    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self.now = 0
        self._num_streams = self._num_events = 0

    def current(self) -> int:
        return self.now

    def beside(self) -> int:
        self._num_streams += 1
        return self._num_streams

    def event(self) -> int:
        self._num_events += 1
        return self._num_events

    def record(self, event: int, stream: int) -> None:
        self.trace.record(event, stream)

    def wait(self, stream: int, event: int) -> None:
        self.trace.wait(stream, event)

    @contextlib.contextmanager
    def on(self, stream: int) -> Iterator[None]:
        before, self.now = self.now, stream
        try:
            yield
        finally:
            self.now = before


class Recorder(TorchDispatchMode):
    """Notes the operations of this thread on the current stream of `streams`."""

    def __init__(self, streams: NotedStreams) -> None:
        super().__init__()
        self._streams, self._trace = streams, streams.trace
        self._starts: list[int] = []
        self._live: dict[int, tuple[int, Memory, StorageWeakRef]] = {}
        self._earlier = Memory(stream=-1)
        """All memory that was there before; addresses tell its parts apart."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._collect()
        inputs = list(_arguments(func, args, kwargs or {}))
        result = func(*args, **(kwargs or {}))
        aliases = [it.alias_info for it in func._schema.returns]
        if aliases and all(it is not None and not it.is_write for it in aliases):
            return result  # a view
        stream = self._streams.now
        moment = self._trace.begin(stream)
        known = {it.untyped_storage().data_ptr() for it, _ in inputs}
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and tensor.untyped_storage().data_ptr() not in known:
                self._allocated(tensor, stream)
                inputs.append((tensor, True))
        for tensor, is_write in inputs:
            if tensor.numel():
                start, stop = _bytes_of(tensor)
                access = Access(stream, moment, start, stop, is_write, str(func))
                self._trace.touch(self._memory_at(start), access)
        return result

    def finish(self) -> None:
        """All tensors that are gone have been given back."""
        self._collect()

    def _allocated(self, tensor: Tensor, stream: int) -> None:
        storage = tensor.untyped_storage()
        base = storage.data_ptr()
        if storage.nbytes() == 0:
            return
        if base not in self._live:
            insort(self._starts, base)
        self._live[base] = base + storage.nbytes(), Memory(stream), StorageWeakRef(storage)

    def _memory_at(self, address: int) -> Memory:
        index = bisect_right(self._starts, address) - 1
        if index >= 0:
            stop, memory, _ = self._live[self._starts[index]]
            if address < stop:
                return memory
        return self._earlier

    def _collect(self) -> None:
        for base in [base for base, (_, _, ref) in self._live.items() if ref.expired()]:
            _, memory, _ = self._live.pop(base)
            self._starts.remove(base)
            self._trace.give_back(memory)


def _arguments(func: Any, args: Any, kwargs: Any) -> Iterator[tuple[Tensor, bool]]:
    """Yield every tensor among the arguments, and whether it is written."""
    for index, argument in enumerate(func._schema.arguments):
        value = args[index] if index < len(args) else kwargs.get(argument.name)
        is_write = argument.alias_info is not None and argument.alias_info.is_write
        for leaf in tree_leaves(value):
            if isinstance(leaf, Tensor):
                yield leaf, is_write


def _bytes_of(tensor: Tensor) -> tuple[int, int]:
    extent = 1 + sum(
        (size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True)
    )
    start = tensor.data_ptr()
    return start, start + extent * tensor.itemsize
