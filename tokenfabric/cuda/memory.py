"""Memory that every rank's GPU has mapped, from torch's symmetric memory.

Signal words are ours and lie in the memory itself: torch's signal pad has changed its size and its
place between versions, and belongs to torch's own operations.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from tokenfabric import native
from tokenfabric.errors import CommTimeoutError, ConfigError, TokenFabricError, TopologyError
from tokenfabric.rendezvous import all_gather_bytes

if TYPE_CHECKING:
    from torch._C._distributed_c10d import _SymmetricMemory

ALIGNMENT_BYTES = 128
"""Of the first byte, and of what the ranks' signal words need."""
_REPORT_BYTES = 512


class CudaMemory:
    """`num_bytes` on the GPU of every rank, zero at first; all ranks see all of them.

    Attributes:
        by_rank: address of each rank's part, as this rank's GPU sees it.
        multicast: address that stands for all parts at once; 0: there is none, on any rank.
        native: the same for the native module.
    """

    def __init__(self, group: dist.ProcessGroup | None, device: torch.device, num_bytes: int):
        """Allocate and map. Collective over `group`; None is a world of one rank.

        Blocks the host, so it cannot be captured into a CUDA graph.

        Raises:
            ConfigError: a GPU has not enough memory; on all ranks.
            TopologyError: a GPU cannot map another's memory.
            CommTimeoutError: a rank did not take part.
        """
        if torch.cuda.is_current_stream_capturing():
            raise ConfigError(
                "symmetric memory cannot be allocated while a CUDA graph is captured: make the "
                "buffer before"
            )
        self.num_bytes = num_bytes
        self.rank = 0 if group is None else dist.get_rank(group)
        size = 1 if group is None else dist.get_world_size(group)
        self._handle: _SymmetricMemory | None = None
        if group is None or size == 1:
            self._tensor = _allocate_alone(device, num_bytes)
            bases, multicast = [self._tensor.data_ptr()], 0
        else:
            self._tensor = _allocate(group, device, num_bytes)
            self._handle = _map(group, self._tensor)
            bases, multicast = list(self._handle.buffer_ptrs), self._handle.multicast_ptr
            _check_base(bases[self.rank], self._tensor.data_ptr())
            # One rank's switch may have refused: then none uses multicast.
            flags = all_gather_bytes(bytes([multicast != 0]), group)
            multicast = multicast if all(flag == b"\1" for flag in flags) else 0
        # The same on all ranks: every mapping starts at a page.
        self._start = -bases[self.rank] % ALIGNMENT_BYTES
        self.by_rank = [base + self._start for base in bases]
        self.multicast = multicast and multicast + self._start
        self.native = native.cuda.Memory(self.by_rank, self.multicast)

    def release(self) -> None:
        """Give it back once the last tensor of this rank's part is gone. Not collective: a peer's
        mapping keeps the memory for that peer.
        """
        self._tensor = torch.empty(0, dtype=torch.uint8)
        self._handle = None

    def offset_of(self, address: int, num_bytes: int) -> int | None:
        """Return where memory of this process's GPU lies in this rank's part, None if outside."""
        offset = address - self.by_rank[self.rank]
        return offset if 0 <= offset <= self.num_bytes - num_bytes else None

    def tensor(
        self, rank: int, shape: Sequence[int], dtype: torch.dtype, offset_bytes: int
    ) -> torch.Tensor:
        """Return a part as a tensor that aliases it; it fits, and the offset is aligned."""
        start = self._start + offset_bytes
        if rank == self.rank or self._handle is None:
            stop = start + math.prod(shape) * dtype.itemsize
            return self._tensor[start:stop].view(dtype).view(tuple(shape))
        return self._handle.get_buffer(rank, tuple(shape), dtype, start // dtype.itemsize)


def _allocate_alone(device: torch.device, num_bytes: int) -> torch.Tensor:
    try:
        return torch.zeros(num_bytes + ALIGNMENT_BYTES, dtype=torch.uint8, device=device)
    except torch.OutOfMemoryError as error:
        raise ConfigError(f"{device} has no {num_bytes} bytes left: {_first_line(error)}") from None


def _allocate(group: dist.ProcessGroup, device: torch.device, num_bytes: int) -> torch.Tensor:
    """Allocate zeros on every rank, or on none: a rank that failed would leave the rest waiting."""
    from torch._C._distributed_c10d import _SymmetricMemory

    tensor, problem = None, ""
    try:
        # Not symm_mem.empty: it may cut the tensor out of a pool, and torch versions differ in
        # whether the multicast address then counts from the pool or from the tensor.
        tensor = _SymmetricMemory.empty_strided_p2p(
            (num_bytes + ALIGNMENT_BYTES,), (1,), torch.uint8, device
        )
        tensor.zero_()
        # Peers may write as soon as they have mapped it.
        torch.cuda.synchronize(device)
    except RuntimeError as error:
        problem = _first_line(error)
    report = problem.encode("ascii", "replace")[:_REPORT_BYTES].ljust(_REPORT_BYTES)
    reports = [data.rstrip().decode() for data in all_gather_bytes(report, group)]
    failed = next((rank for rank, text in enumerate(reports) if text), None)
    if failed is not None or tensor is None:
        raise ConfigError(
            f"rank {failed} could not allocate {num_bytes} bytes on its GPU: "
            f"{reports[failed or 0]}. Free memory there, or ask for less on all ranks"
        )
    return tensor


def _map(group: dist.ProcessGroup, tensor: torch.Tensor) -> "_SymmetricMemory":
    from torch.distributed import _symmetric_memory as symm_mem

    try:
        handle: Any = symm_mem.rendezvous(tensor, group)
    except dist.DistStoreError as error:
        raise CommTimeoutError(
            f"a rank did not come to map GPU memory: {_first_line(error)}",
            rank=dist.get_rank(group),
            operation="allocate",
        ) from error
    except RuntimeError as error:
        raise TopologyError(
            f"the ranks cannot map each other's GPU memory: {_first_line(error)}. `tokenfabric "
            "doctor` says which GPUs reach each other"
        ) from error
    if handle is None:
        raise TokenFabricError(
            f"torch {torch.__version__} does not know the symmetric memory it has allocated"
        )
    mapped: _SymmetricMemory = handle
    return mapped


def _check_base(base: int, address: int) -> None:
    if base != address:
        raise TokenFabricError(
            f"torch {torch.__version__} has mapped another start ({base:#x}) than that of the "
            f"tensor ({address:#x}): this version is not known to this library"
        )


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]
