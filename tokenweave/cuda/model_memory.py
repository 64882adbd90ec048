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

from collections.abc import Callable
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
        self._sums_and_norms: CudaMemory | None = None
        self._residuals: CudaMemory | None = None

    @property
    def held(self) -> object:
        """What must stay alive for launches that have addresses of the latest pass."""
        return self._sums_and_norms, self._residuals

    def of_pass(self, num_tokens: int, hidden: int, dtype: torch.dtype) -> "GpuPassMemory":
        """Return the memory of a pass. Collective where it must grow: ranks make equal passes.

        Raises:
            ConfigError: a GPU has not enough memory; or it must grow while a graph is captured.
        """
        shape = (num_tokens, hidden)
        place_bytes = -(-num_tokens * hidden * dtype.itemsize // _ALIGNMENT_BYTES)
        place_bytes *= _ALIGNMENT_BYTES
        if not _has(self._sums_and_norms, 2 * place_bytes):
            self._sums_and_norms = None  # or old and new would be there at once
            self._sums_and_norms = self._allocate(2 * place_bytes)
        shared, rank = self._sums_and_norms, self._world.rank
        assert shared is not None

        def residual() -> Tensor:
            if not _has(self._residuals, place_bytes):
                self._residuals = None
                self._residuals = self._allocate(place_bytes)
            assert self._residuals is not None
            return self._residuals.tensor(rank, shape, dtype, 0)

        return GpuPassMemory(
            shared.tensor(rank, shape, dtype, 0),
            shared.tensor(rank, shape, dtype, place_bytes),
            residual,
        )

    def _allocate(self, needed: int) -> "CudaMemory":
        """Allocate anew. The last pass has joined its streams, and its kernels ended here only when
        all ranks had read and written: what it used may go.
        """
        cuda = self._world.cuda
        assert cuda is not None
        # Made in inference mode, a pass outside of it could not write there.
        with torch.inference_mode(False):
            return cuda.allocate(capacity_bytes(needed))


def _has(memory: "CudaMemory | None", needed: int) -> bool:
    return memory is not None and memory.num_bytes >= needed


class GpuPassMemory:
    """Implements PassMemory with the model's memory."""

    def __init__(self, partial: Tensor, normed: Tensor, residual: Callable[[], Tensor]):
        """Take tensors [tokens, hidden] that all ranks have mapped at the same places; that of the
        residuals is made when it is asked for, on all ranks.
        """
        self.partial, self.normed = partial, normed
        self._make_residual = residual
        self._residual: Tensor | None = None
        self.open_part: GpuPart | None = None
        """Of the block that comes next or runs, until it has asked where its partial sum goes."""

    @property
    def residual(self) -> Tensor:
        """[tokens, hidden]. Collective at the first time."""
        if self._residual is None:
            self._residual = self._make_residual()
        return self._residual

    def part(self, start: int, stop: int) -> PassPart:
        return GpuPart(self, start, stop)

    def taken_out(self, x: Tensor) -> Tensor:
        # The next pass writes there, and so do peers.
        return x.clone()


class GpuPart:
    """Implements PassPart."""

    __slots__ = ("_memory", "_rows", "normed", "partial")

    def __init__(self, memory: GpuPassMemory, start: int, stop: int):
        self._memory = memory
        self.partial = memory.partial[start:stop]
        self.normed = memory.normed[start:stop]
        self._rows = slice(start, stop)

    @property
    def residual(self) -> Tensor:
        """[tokens of the half, hidden], complete on every rank. Collective at the first time."""
        return self._memory.residual[self._rows]

    def open(self) -> None:
        self._memory.open_part = self

    def placed(self, x_partial: Tensor) -> Tensor:
        self._memory.open_part = None
        if x_partial.data_ptr() != self.partial.data_ptr():
            self.partial.copy_(x_partial.reshape(self.partial.shape))
        return self.partial.view(x_partial.shape)
