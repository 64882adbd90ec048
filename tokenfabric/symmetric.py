"""Memory that every rank of a world has mapped: the same number of bytes, the same offsets."""

import math
import warnings
from types import TracebackType
from typing import TYPE_CHECKING, Self

import torch

from tokenfabric.errors import ConfigError, TopologyError
from tokenfabric.world import World

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokenfabric import native
    from tokenfabric.cuda.memory import CudaMemory

_ALIGNMENT_BYTES = 64


class SymmetricBuffer:
    """`num_bytes` of shared memory on every rank of a world, mapped by all ranks of its host.

    On the CPUs, or, in a world on GPUs, on those.

    Example: world 2, buf = SymmetricBuffer(world, 4096). What rank 1 writes into
    `buf.tensor((8,), torch.float32)` rank 0 reads, after a barrier, from
    `buf.peer(1, (8,), torch.float32)`.

    A partial sum that lies in such a buffer is reduced without a copy; on GPUs a result, too, may
    be written into one, at the same offset on all ranks.
    """

    def __init__(self, world: World, num_bytes: int, *, device: str | None = None) -> None:
        """Allocate and zero the memory. Collective: all ranks ask for the same size.

        Args:
            num_bytes: size of each rank's part. Allocated in full here, on the NUMA node of the
                caller.
            device: "cpu" or "cuda"; default: where the world is. A world on GPUs has both.

        Raises:
            ConfigError: the size is not positive, the world is not on GPUs, or a rank's host or GPU
                has not enough memory (raised on all ranks, with the figures).
            TopologyError: a GPU cannot map another's memory.
            MismatchError: the ranks ask for different sizes.
            PeerLostError, CommTimeoutError: a rank is gone or did not take part.
        """
        if num_bytes <= 0:
            raise ConfigError(f"a symmetric buffer needs a positive size, got {num_bytes} bytes")
        self._world = world
        self.num_bytes = num_bytes
        comm = world.host_comm
        kind = world.device.type if device is None else device
        if kind not in ("cpu", world.device.type):
            raise ConfigError(
                f"device {device!r} is not that of this world, which is on {world.device}"
            )
        self.cuda: CudaMemory | None = None
        self._memory: native.fabric.SymmetricMemory | None = None
        if kind == "cpu":
            self._memory = comm.allocate(num_bytes)
        else:
            assert world.cuda is not None
            self.cuda = world.cuda.allocate(num_bytes)
        world._adopt(self)

    def tensor(
        self, shape: "Sequence[int]", dtype: torch.dtype, offset_bytes: int = 0
    ) -> torch.Tensor:
        """Return this rank's own part as a tensor that aliases it.

        Raises:
            ConfigError: it does not fit, the offset is not a multiple of 64, or the buffer is
                closed.
        """
        return self.peer(self._world.rank, shape, dtype, offset_bytes)

    def peer(
        self, rank: int, shape: "Sequence[int]", dtype: torch.dtype, offset_bytes: int = 0
    ) -> torch.Tensor:
        """Return rank `rank`'s part as a tensor that aliases it. Order against its owner with
        barriers. On GPUs it is valid until the buffer is closed.

        Raises:
            ConfigError: as for `tensor`, or `rank` is not in the world.
            TopologyError: `rank` is on another host.
        """
        if self._memory is None and self.cuda is None:
            raise ConfigError("this symmetric buffer is closed")
        if not 0 <= rank < self._world.size:
            raise ConfigError(f"rank {rank} is not in a world of {self._world.size}")
        layout = self._world.layout
        if rank not in layout.host_ranks:
            raise TopologyError(
                f"rank {rank} is on another host than rank {layout.rank}, which shares memory with "
                f"ranks {list(layout.host_ranks)} only; send it with a collective"
            )
        count = math.prod(shape)
        needed = offset_bytes + count * dtype.itemsize
        if offset_bytes < 0 or offset_bytes % _ALIGNMENT_BYTES or needed > self.num_bytes:
            raise ConfigError(
                f"{tuple(shape)} of {dtype} at byte {offset_bytes} ends at {needed}: it must start "
                f"at a multiple of {_ALIGNMENT_BYTES} and end within {self.num_bytes} bytes"
            )
        if self.cuda is not None:
            return self.cuda.tensor(rank, shape, dtype, offset_bytes)
        if count == 0:
            return torch.empty(tuple(shape), dtype=dtype)
        assert self._memory is not None
        segment = self._memory.segment(rank - layout.host_ranks[0])
        flat = torch.frombuffer(segment, dtype=dtype, count=count, offset=offset_bytes)
        return flat.view(tuple(shape))

    def close(self) -> None:
        """Give the memory back. Not collective. Tensors of this rank's part stay valid, and on CPUs
        those of the others; no new ones are made.
        """
        self._memory = self.cuda = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        is_open = getattr(self, "_memory", None) or getattr(self, "cuda", None)
        if is_open is not None and not self._world.is_closed:
            warnings.warn(
                f"SymmetricBuffer of {self.num_bytes} bytes was not closed",
                ResourceWarning,
                stacklevel=2,
            )
