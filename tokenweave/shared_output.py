"""One physical result for all ranks: the internal form between two blocks that this library owns.

Saves every rank the copy of the other ranks' rows (for N ranks, (N - 1) / N of the tensor written
and read again). Not for foreign code: what it hands out is overwritten two reductions later.
"""

import math
import warnings
from typing import TYPE_CHECKING

import torch

from tokenfabric.errors import ConfigError

if TYPE_CHECKING:
    from tokenfabric.world import World


class SharedOutput:
    """A double-buffered [max_tokens, hidden] tensor, written by all ranks, read by all ranks.

    Two buffers, because a rank may be one reduction ahead of a peer that still reads the result
    before. The entry barrier of the reduction after the next tells that every rank is done with it.
    """

    def __init__(self, world: "World", max_tokens: int, hidden: int, dtype: torch.dtype) -> None:
        """Allocate both buffers. Collective.

        Args:
            world: whose ranks share them.
            max_tokens, hidden, dtype: the largest result.

        Raises:
            ConfigError: a size is not positive, there is not enough memory, or the world is on
                GPUs.
            MismatchError: the ranks ask for different sizes.
        """
        if world.cuda is not None:
            raise ConfigError(
                "a SharedOutput is for ranks on CPUs: on GPUs let `out` lie in a SymmetricBuffer"
            )
        if max_tokens <= 0 or hidden <= 0:
            raise ConfigError(f"a shared output needs positive sizes, got {max_tokens} x {hidden}")
        self.max_tokens, self.hidden, self.dtype = max_tokens, hidden, dtype
        self._slot = 0
        slot_bytes = -(-max_tokens * hidden * dtype.itemsize // 64) * 64
        writable, readable = world.comm.allocate_shared(2 * slot_bytes)
        self._writable = writable
        self._addresses = (writable.address, writable.address + slot_bytes)
        # Mapped read-only: a block that writes into what it was given to read faults at once
        # instead of corrupting its peers. torch has no read-only tensors and says so for each; once
        # is enough here.
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The given buffer is not writable")
            self._tensors = tuple(
                torch.frombuffer(
                    readable, dtype=dtype, count=max_tokens * hidden, offset=slot * slot_bytes
                )
                for slot in range(2)
            )

    def slot(self, shape: torch.Size, dtype: torch.dtype) -> tuple[int, torch.Tensor]:
        """Return where the next result is written, and the read-only tensor it will be seen as.

        Raises:
            ConfigError: the result does not fit.
        """
        count = math.prod(shape)
        if dtype != self.dtype or count > self.max_tokens * self.hidden:
            raise ConfigError(
                f"a shared output for {self.max_tokens} x {self.hidden} of {self.dtype} cannot "
                f"hold {tuple(shape)} of {dtype}"
            )
        return self._addresses[self._slot], self._tensors[self._slot][:count].view(shape)

    def advance(self) -> None:
        """Go on to the other buffer: after a reduction succeeded, which it does on all ranks or on
        none.
        """
        self._slot ^= 1
