"""What a world on GPUs has besides: the ranks' agreement, a workspace, streams, failures."""

import math
import weakref
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist

from tokenfabric import env, native
from tokenfabric.channel_cuda import CopyEngineChannel
from tokenfabric.cuda.capability import AgreedCapability, agree
from tokenfabric.cuda.device import pack, read_capability, unpack
from tokenfabric.cuda.kernels.launcher import kernel_backend, kernel_launcher
from tokenfabric.cuda.memory import ALIGNMENT_BYTES, CudaMemory
from tokenfabric.errors import CommError, ConfigError, TopologyError
from tokenfabric.rendezvous import all_gather_bytes

ONE_SHOT_BLOCKS = 16
"""Blocks that the staging of one-shot reductions is made for."""
ONE_SHOT_BLOCK_BYTES = 64 << 10
"""What one of them can take of a message: a row of 16384 fp32."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Workspace:
    """Offsets into the memory that all ranks of a world share, in bytes."""

    staging: int
    partial: int
    result: int
    residual: int
    slot_bytes: int
    """Of partial, result and residual each."""
    total: int

    @classmethod
    def lay_out(cls, channel_bytes: int, staging_bytes: int, slot_bytes: int) -> "Workspace":
        """Return the places after the channel, which comes first; each is aligned."""
        places = [0]
        for size in (channel_bytes, staging_bytes, slot_bytes, slot_bytes, slot_bytes):
            places.append(-(-(places[-1] + size) // ALIGNMENT_BYTES) * ALIGNMENT_BYTES)
        _, staging, partial, result, residual, total = places
        return cls(
            staging=staging,
            partial=partial,
            result=result,
            residual=residual,
            slot_bytes=slot_bytes,
            total=total,
        )


class CudaRanks:
    """The ranks of a world as GPUs, as one of them sees the others.

    Attributes:
        device: this rank's GPU.
        capability: what all ranks can do, and why not more.
        memory, workspace: what the ranks share, and how it is used.
        group: this rank's place among them, for native launches.
        size: number of ranks.
        channel: messages between the GPUs, once somebody has opened it.
        table: the file of measured times that algorithms are chosen by, equal on all ranks; or
            nothing.
    """

    def __init__(
        self, group: dist.ProcessGroup | None, device: torch.device, timeout_s: float
    ) -> None:
        """Agree and allocate. Collective over `group`; None is a world of one rank.

        Raises:
            TopologyError: the GPUs cannot be used together; names the rank that stands in the way.
            ConfigError: a GPU has not enough memory.
            MismatchError, PeerLostError, CommTimeoutError: see `tokenfabric.init`.
        """
        index: int | None = device.index
        if index is None and torch.cuda.is_available():
            device = torch.device("cuda", torch.cuda.current_device())
        found, self.table = read_capability(device)
        own = pack(found)
        cards = [own] if group is None else all_gather_bytes(own, group)
        self.capability = agree([unpack(card) for card in cards])
        if self.capability.reach == "none":
            raise TopologyError(f"the ranks cannot use their GPUs: {self.capability.reason}")
        self.size = len(cards)
        if self.size > native.cuda.MAX_RANKS:
            raise TopologyError(
                f"{self.size} ranks are too many: kernels know at most {native.cuda.MAX_RANKS}"
            )
        self.device = device
        self.rank = 0 if group is None else dist.get_rank(group)
        self._process_group = group
        self._timeout_s = timeout_s
        self.channel: CopyEngineChannel | None = None
        channel_bytes = native.cuda.channel_bytes()
        staging_bytes = native.cuda.staging_bytes(self.size, ONE_SHOT_BLOCKS, ONE_SHOT_BLOCK_BYTES)
        slot_bytes = env.cuda_slot_bytes() if self.size > 1 else 0
        self.workspace = Workspace.lay_out(channel_bytes, staging_bytes, slot_bytes)
        self.memory = CudaMemory(group, device, self.workspace.total)
        self.capability = _with_what_came(self.capability, self.memory)
        # The GPU writes what went wrong here: reading it takes no CUDA call.
        self._record = torch.zeros(
            native.cuda.FAILURE_RECORD_BYTES, dtype=torch.uint8, pin_memory=True
        )
        self.group = native.cuda.Group(
            self.rank,
            self.size,
            False,
            self.memory.native,
            0,
            [self._record.data_ptr()],
            timeout_s,
            env.cuda_checks(),
            kernel_launcher(),
        )
        # A world of one rank finds every tensor in its reach.
        self.everywhere = native.cuda.Memory([0], 0) if self.size == 1 else None
        self._shared: list[weakref.ref[CudaMemory]] = []
        self._stream: torch.cuda.Stream | None = None
        self._raw_stream = -1
        self._is_closed = False

    def allocate(self, num_bytes: int) -> CudaMemory:
        """Return new memory that all ranks share. Collective.

        Raises:
            ConfigError, TopologyError, CommTimeoutError: see `CudaMemory`.
        """
        memory = CudaMemory(self._process_group, self.device, num_bytes)
        if self.capability.reach == "multicast" and not memory.multicast:
            raise TopologyError(
                f"multicast could not be set up for {num_bytes} bytes more, although the world has "
                "it: the switch may have run out of multicast objects"
            )
        self._shared = [it for it in self._shared if it() is not None]
        self._shared.append(weakref.ref(memory))
        return memory

    def partial_sums(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor | None:
        """Return the slot that partial sums are reduced from, None if they do not fit."""
        num_bytes = math.prod(shape) * dtype.itemsize
        if not 0 < num_bytes <= self.workspace.slot_bytes:
            return None
        return self.memory.tensor(self.rank, shape, dtype, self.workspace.partial)

    def find(self, address: int, num_bytes: int) -> tuple["native.cuda.Memory", int] | None:
        """Return the shared memory in which a tensor lies, and where; None if it is private."""
        if self.everywhere is not None:
            return self.everywhere, address
        offset = self.memory.offset_of(address, num_bytes)
        if offset is not None:
            return self.memory.native, offset
        for reference in self._shared:
            memory = reference()
            if memory is not None:
                offset = memory.offset_of(address, num_bytes)
                if offset is not None:
                    return memory.native, offset
        return None

    def stream(self) -> int:
        """Return the current stream of this rank's GPU, on which the next launch goes.

        A world has one channel of signals: launches on another stream wait for those before. While
        a graph is captured nothing can be waited for, and its replays are the caller's to order.

        Raises:
            ConfigError: another GPU is the current one.
        """
        if torch._C._cuda_getDevice() != self.device.index:
            raise ConfigError(
                f"the current GPU is cuda:{torch.cuda.current_device()}, this world is on "
                f"{self.device}: use torch.cuda.set_device or torch.cuda.device"
            )
        raw: int = torch._C._cuda_getCurrentRawStream(self.device.index)
        if raw != self._raw_stream:
            self._follow(raw)
        return raw

    def _follow(self, raw: int) -> None:
        if torch.cuda.is_current_stream_capturing():
            return
        stream = torch.cuda.current_stream(self.device)
        if self._stream is not None:
            stream.wait_stream(self._stream)
        self._stream, self._raw_stream = stream, raw

    def open_channel(self, comm: "native.fabric.Communicator") -> CopyEngineChannel:
        """Return the messages between the GPUs, opened by the first use. Not collective.

        Args:
            comm: shared host memory of the same ranks.
        """
        if self.channel is None:
            self.channel = CopyEngineChannel(
                comm,
                self.allocate,
                self.stream,
                device_index=self.device.index,
                timeout_s=self._timeout_s,
            )
        return self.channel

    def error(self, operation: str = "a kernel") -> CommError | None:
        """Return what this rank's kernels or messages have recorded, None while all is well."""
        if self.channel is not None and (failure := self.channel.failure()) is not None:
            return failure
        try:
            self.group.check(operation)
        except CommError as error:
            return error
        return None

    def explain(self) -> Sequence[str]:
        """Return what was agreed and allocated, in a few lines."""
        place = self.workspace
        return (
            f"{self.capability.explain()}",
            kernel_backend().reason,
            f"workspace of {place.total >> 20} MiB: 3 slots of {place.slot_bytes >> 20} MiB, "
            f"one-shot up to {ONE_SHOT_BLOCKS * ONE_SHOT_BLOCK_BYTES >> 10} KiB",
        )

    def close(self) -> None:
        """Take part in no further launch, and give the memory back.

        Waits for this rank's launches, which may write to it; at most their deadline.
        """
        if not self._is_closed:
            self._is_closed = True
            torch.cuda.synchronize(self.device)
            if self.channel is not None:
                self.channel.close()
            self.memory.release()


def _with_what_came(capability: AgreedCapability, memory: CudaMemory) -> AgreedCapability:
    if capability.reach == "multicast" and not memory.multicast:
        return capability.without_multicast(
            "the GPUs have multicast, but it could not be set up (is the fabric manager running?)"
        )
    return capability
