"""Where the passes of one model write on GPUs: memory of the model that all ranks have mapped.

For each token a partial sum, a norm and, where residuals are complete on every rank, a residual.
Blocks write partial sums there and read norms from there, so nothing is copied between a block and
a reduction. Halves of a pass are slices of it.

It belongs to the model and not to a pass, so a pass allocates nothing that its two streams share:
no record_stream is needed, which would keep memory from reuse until the allocator polls an event,
and would not be seen by a captured graph. What orders its reuse is the plan: a half's next partial
sum is written by a block that waits for the reduction which read the last one, on every rank,
because a kernel ends when all ranks have read; a norm is overwritten by peers after this rank has
arrived in that reduction, hence after its block has read it.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tokenweave.pass_memory import PassPart

if TYPE_CHECKING:
    from tokenfabric.cuda.memory import CudaMemory
    from tokenfabric.world import World

_ALIGNMENT_BYTES = 128
_LEAST_BYTES = 2 << 20
"""The page of GPU memory: less than that costs as much."""


def capacity_bytes(needed: int) -> int:
    """Return how much to allocate for a pass that needs so many bytes: a quarter more, in pages.

    Equal on all ranks for equal passes. Passes that grow by a token at a time allocate seldom.
    """
    pages = -(-(needed + needed // 4) // _LEAST_BYTES)
    return max(1, pages) * _LEAST_BYTES


class ModelMemory:
    """The memory of one model on a world of GPUs."""

    def __init__(self, world: "World"):
        """Take the world; nothing is allocated before the first pass."""
        self._world = world
        self._shared: CudaMemory | None = None

    @property
    def held(self) -> object:
        """What must stay alive for launches that have addresses of the latest pass."""
        return self._shared

    def of_pass(self, num_tokens: int, hidden: int, dtype: torch.dtype) -> "GpuPassMemory":
        """Return the memory of a pass. Collective where it must grow: ranks make equal passes.

        Raises:
            ConfigError: a GPU has not enough memory; or it must grow while a graph is captured.
        """
        cuda = self._world.cuda
        assert cuda is not None
        row_bytes = num_tokens * hidden * dtype.itemsize
        place_bytes = -(-row_bytes // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES
        needed = 3 * place_bytes
        if self._shared is None or self._shared.num_bytes < needed:
            # The old one goes first, or both would be there at once. The last pass has joined its
            # streams, and its kernels ended here only when all ranks had read and written.
            self._shared = None
            with torch.inference_mode(False):
                # Made in inference mode, a pass outside of it could not write there.
                self._shared = cuda.allocate(capacity_bytes(needed))
        shape = (num_tokens, hidden)
        partial, normed, residual = (
            self._shared.tensor(cuda.rank, shape, dtype, place * place_bytes) for place in range(3)
        )
        return GpuPassMemory(partial, normed, residual)


class GpuPassMemory:
    """Implements PassMemory with the model's memory."""

    def __init__(self, partial: Tensor, normed: Tensor, residual: Tensor):
        """Take three tensors [tokens, hidden] that all ranks have mapped at the same places."""
        self.partial, self.normed, self.residual = partial, normed, residual
        self.open_part: GpuPart | None = None
        """Of the block that comes next or runs, until it has asked where its partial sum goes."""

    def part(self, start: int, stop: int) -> PassPart:
        return GpuPart(self, start, stop)

    def taken_out(self, x: Tensor) -> Tensor:
        # The next pass writes there, and so do peers.
        return x.clone()


class GpuPart:
    """Implements PassPart."""

    __slots__ = ("_memory", "normed", "partial", "residual")

    def __init__(self, memory: GpuPassMemory, start: int, stop: int):
        self._memory = memory
        self.partial = memory.partial[start:stop]
        self.normed = memory.normed[start:stop]
        self.residual = memory.residual[start:stop]

    def open(self) -> None:
        self._memory.open_part = self

    def placed(self, x_partial: Tensor) -> Tensor:
        self._memory.open_part = None
        if x_partial.data_ptr() != self.partial.data_ptr():
            self.partial.copy_(x_partial.reshape(self.partial.shape))
        return self.partial.view(x_partial.shape)
