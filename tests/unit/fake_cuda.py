"""The native launches on plain memory: ranks are threads of a process, kernels are torch on CPU.

Takes the place of `native.cuda`, so that everything above the kernels runs without a GPU:
addresses, slots, copies, plans. It says nothing about the kernels.
"""

import ctypes
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from tokenfabric.cuda.capability import AgreedCapability
from tokenfabric.cuda.memory import CudaMemory
from tokenfabric.cuda.ranks import ONE_SHOT_BLOCK_BYTES, ONE_SHOT_BLOCKS, CudaRanks, Workspace
from tokenfabric.errors import PeerLostError
from tokenfabric.prepared import PreparedCalls
from tokenweave.native_call import NATIVE_DTYPE
from tokenweave.plan import split_rows

_DTYPE = {number: dtype for dtype, number in NATIVE_DTYPE.items()}
_TIMEOUT_S = 20.0


def at(address: int, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Return the memory at an address as a tensor."""
    count = torch.Size(shape).numel()
    if count == 0:
        return torch.empty(tuple(shape), dtype=dtype)
    raw = (ctypes.c_char * (count * dtype.itemsize)).from_address(address)
    return torch.frombuffer(raw, dtype=dtype, count=count).view(tuple(shape))


class FakeMemory:
    def __init__(self, by_rank: Sequence[int], multicast: int) -> None:
        self.by_rank, self.multicast = list(by_rank), multicast


class FakeGroup:
    """One rank's place; `meeting` is the barrier of all of them."""

    def __init__(self, rank: int, size: int, meeting: threading.Barrier) -> None:
        self.rank, self.size, self.meeting = rank, size, meeting

    def check(self, operation: str) -> None:
        """Nothing goes wrong here."""


class FakeReduction:
    """See csrc/weave/cuda/launch.hpp: the same contract, on CPU tensors."""

    def __init__(self, cuda: "FakeCuda", *settled: Any) -> None:
        (self.group, self.form, self.is_multicast, self.rows, self.hidden, dtype, weight_dtype,
         residual_dtype, self.owns_residual, _, self.format, *_) = settled  # fmt: skip
        self.dtype, self.weight_dtype = _DTYPE[dtype], _DTYPE[weight_dtype]
        self.residual_dtype, self.cuda, self.settled = _DTYPE[residual_dtype], cuda, settled

    def run(
        self, x_memory: Any, x: int, out_memory: Any, out: int, _: None, residual: int,
        kept_memory: Any, kept: int, codes_memory: Any, codes: int, scales_memory: Any,
        scales: int, bias: int, weight: int, norm_bias: int, eps: float, weight_offset: float,
        stream: int,
    ) -> None:  # fmt: skip
        """Reduce this rank's rows and store them where the form says; meets the other ranks."""
        group, shape = self.group, (self.rows, self.hidden)
        self.cuda.launches.append((group.rank, self.form, x_memory is not None))
        if self.form == self.cuda.ONE_SHOT:
            assert x_memory is out_memory is kept_memory is None
            partials = self.cuda.exchange(group, at(x, shape, self.dtype).clone())
            span = slice(0, self.rows)
        else:
            group.meeting.wait(_TIMEOUT_S)
            partials = [at(base + x, shape, self.dtype) for base in x_memory.by_rank]
            span = slice(*split_rows(self.rows, group.size)[group.rank])
        total = sum(it[span].float() for it in partials).to(self.dtype).float()
        if bias:
            total = total + at(bias, (self.hidden,), self.dtype).float()
        start = 0 if self.owns_residual else span.start
        if residual:
            rows = (start + len(total), self.hidden)
            total = total + at(residual, rows, self.residual_dtype)[start:].float()
        normed = total
        if weight:
            scale = torch.rsqrt(total.square().mean(-1, keepdim=True) + eps)
            normed = total * scale * (weight_offset + at(weight, shape[1:], self.weight_dtype))
        scattered = self.form == self.cuda.REDUCE_SCATTER
        self._store(kept_memory, kept, total.to(self.residual_dtype), start, self.owns_residual)
        self._store(out_memory, out, normed.to(self.dtype), span.start, scattered)
        if self.form != self.cuda.ONE_SHOT:
            group.meeting.wait(_TIMEOUT_S)

    def _store(self, memory: Any, where: int, rows: Tensor, start: int, is_own: bool) -> None:
        """Store rows from `start` on: on all ranks, or in this rank's memory."""
        if memory is None and where == 0:
            return
        first = 0 if is_own else start
        for address in [where] if memory is None else [it + where for it in memory.by_rank]:
            at(address, (first + len(rows), self.hidden), rows.dtype)[first:] = rows


class FakeCuda:
    """What `native.cuda` has, for ranks that are threads."""

    TWO_SHOT, ONE_SHOT, REDUCE_SCATTER, MAX_RANKS, MAX_BLOCKS = 0, 1, 2, 16, 128
    Memory = FakeMemory

    def __init__(self) -> None:
        self.launches: list[tuple[int, int, bool]] = []
        self.copies: list[int] = []
        self._sent: dict[int, Tensor] = {}

    def Reduction(self, *settled: Any) -> FakeReduction:
        """Return a settled reduction."""
        return FakeReduction(self, *settled)

    def exchange(self, group: FakeGroup, tensor: Tensor) -> list[Tensor]:
        """Return the tensors that the ranks bring, in rank order."""
        self._sent[group.rank] = tensor
        group.meeting.wait(_TIMEOUT_S)
        found = [self._sent[rank] for rank in range(group.size)]
        group.meeting.wait(_TIMEOUT_S)
        return found

    def gather(
        self, group: FakeGroup, is_multicast: bool, source_memory: None, source: int,
        out_memory: FakeMemory, out: int, rows: int, row_bytes: int, num_blocks: int, stream: int,
    ) -> None:  # fmt: skip
        """Store this rank's rows on all ranks."""
        start, stop = split_rows(rows, group.size)[group.rank]
        own = at(source, (stop - start, row_bytes), torch.uint8).clone()
        group.meeting.wait(_TIMEOUT_S)
        for base in out_memory.by_rank:
            at(base + out, (rows, row_bytes), torch.uint8)[start:stop] = own
        group.meeting.wait(_TIMEOUT_S)

    def copy(self, to: int, from_: int, num_bytes: int, stream: int) -> None:
        """Copy at once: everything here is in order."""
        self.copies.append(num_bytes)
        at(to, (num_bytes,), torch.uint8).copy_(at(from_, (num_bytes,), torch.uint8))

    def copy_rows(
        self, to: int, to_stride: int, from_: int, from_stride: int, row_bytes: int, rows: int,
        stream: int,
    ) -> None:  # fmt: skip
        """Copy pieces that lie apart."""
        for row in range(rows):
            self.copy(to + row * to_stride, from_ + row * from_stride, row_bytes, stream)

    def one_shot_block_bytes(self, rows: int, hidden: int, dtype: int, num_blocks: int) -> int:
        """Return what the rows of one block take."""
        return -(-rows // num_blocks) * hidden * _DTYPE[dtype].itemsize


class FakeHostComm:
    """The ranks' shared memory on the host, where a rank says that it is gone."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.broken: PeerLostError | None = None

    def check(self) -> None:
        """Raise what broke the world."""
        if self.broken is not None:
            raise self.broken

    def abort(self) -> None:
        """Say that this rank is gone; the fake's barrier is broken by the caller."""
        self.broken = PeerLostError("a rank is gone", rank=0, operation="test")


class FakeRanks(CudaRanks):
    """The real class over plain memory, without streams."""

    def __init__(
        self,
        group: FakeGroup,
        memory: CudaMemory,
        place: Workspace,
        exchange: Callable[[FakeGroup, Tensor], list[Tensor]],
    ) -> None:
        self.exchange = exchange
        self.group, self.memory, self.workspace = group, memory, place  # type: ignore[assignment]
        self.rank, self.size, self.device = group.rank, group.size, torch.device("cpu")
        self.capability = AgreedCapability(
            reach="peer", reason="", world_size=group.size, num_devices=group.size,
            compute_capability=(9, 0), num_sms=132,
        )  # fmt: skip
        self.everywhere = FakeMemory([0], 0) if group.size == 1 else None  # type: ignore[assignment]
        self.table, self._shared = b"", []

    def stream(self) -> int:
        """Return no stream."""
        return 0

    def allocate(self, num_bytes: int) -> CudaMemory:
        """Return memory that all ranks share; poisoned, so that nobody relies on zeros."""
        own = torch.full((num_bytes,), 0xFF, dtype=torch.uint8)
        parts = self.exchange(self.group, own)
        memory = plain_memory(parts, self.rank)
        self._shared.append(lambda: memory)  # type: ignore[arg-type]
        return memory


def plain_memory(parts: list[Tensor], rank: int) -> CudaMemory:
    """Return memory whose part of each rank is a tensor of bytes."""
    memory = object.__new__(CudaMemory)
    memory.rank, memory.num_bytes, memory.multicast = rank, len(parts[0]), 0
    memory.by_rank = [it.data_ptr() for it in parts]
    memory.native = FakeMemory(memory.by_rank, 0)  # type: ignore[assignment]
    memory._tensor, memory._start, memory._handle = parts[rank], 0, None
    return memory


def run_threads(
    cuda: FakeCuda, size: int, slot_bytes: int, fn: Callable[[Any], Any], shared_bytes: int = 64
) -> list[Any]:
    """Run `fn(world)` on ranks that are threads; `world.shared` is memory of all of them."""
    meeting = threading.Barrier(size)
    staging = 2 * size * ONE_SHOT_BLOCKS * ONE_SHOT_BLOCK_BYTES
    place = Workspace.lay_out(1024, staging, slot_bytes)
    parts = [torch.full((place.total,), 0xFF, dtype=torch.uint8) for _ in range(size)]
    others = [torch.zeros(shared_bytes, dtype=torch.uint8) for _ in range(size)]

    def rank_main(rank: int) -> Any:
        ranks = FakeRanks(
            FakeGroup(rank, size, meeting), plain_memory(parts, rank), place, cuda.exchange
        )
        shared = plain_memory(others, rank)
        ranks._shared.append(lambda: shared)  # type: ignore[arg-type]
        world = SimpleNamespace(
            cuda=ranks, rank=rank, size=size, device=torch.device("cpu"), hosts=None,
            host_comm=FakeHostComm(size), prepared=PreparedCalls(), shared=shared,
            layout=SimpleNamespace(num_hosts=1),
        )  # fmt: skip
        try:
            return fn(world)
        except BaseException:
            meeting.abort()
            raise

    with ThreadPoolExecutor(size) as pool:
        futures = [pool.submit(rank_main, rank) for rank in range(size)]
        return [future.result(timeout=60) for future in futures]
