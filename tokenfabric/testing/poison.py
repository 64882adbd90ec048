"""Memory that shows who wrote where: poisoned outputs, guards around a tensor, frozen inputs."""

import contextlib
import math
from collections.abc import Iterator

import torch
from torch import Tensor

_POISON_BYTE = 0xFF  # all ones: a NaN in every float format, and one that no arithmetic produces
_CANARY_BYTE = 0xA5
_ALIGNMENT_BYTES = 64


def poison(tensor: Tensor) -> Tensor:
    """Fill `tensor` (any dtype and strides) with bytes 0xFF, NaN in every float; return it."""
    element = torch.full((tensor.element_size(),), _POISON_BYTE, dtype=torch.uint8)
    tensor.copy_(element.view(tensor.dtype)[0])
    return tensor


def assert_overwritten(tensor: Tensor, *, what: str = "output") -> None:
    """Check that no element of `tensor` still holds the poison.

    Raises:
        AssertionError: names how many do and the first coordinate.
    """
    data = _bytes(tensor).view(*tensor.shape, tensor.element_size())
    left = (data == _POISON_BYTE).all(dim=-1)
    if count := int(left.sum()):
        index = torch.unravel_index(left.flatten().int().argmax(), left.shape)
        raise AssertionError(
            f"{what}: {count} of {tensor.numel()} elements were never written, "
            f"first at {[int(i) for i in index]}"
        )


class Guarded:
    """A contiguous tensor, poisoned, with canary bytes before and after it.

    `guard_bytes` on each side hold a known pattern which `check()` verifies; the tensor itself
    starts `misalignment_bytes` (a multiple of the element size) after a 64-byte boundary.
    """

    def __init__(
        self,
        *shape: int,
        dtype: torch.dtype,
        guard_bytes: int = 4096,
        misalignment_bytes: int = 0,
    ):
        if misalignment_bytes % dtype.itemsize:
            raise ValueError(f"{misalignment_bytes} is no multiple of {dtype.itemsize} bytes")
        num_bytes = math.prod(shape) * dtype.itemsize
        start = -(-guard_bytes // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES + misalignment_bytes
        stop = start + num_bytes
        self._memory = torch.full((stop + guard_bytes,), _CANARY_BYTE, dtype=torch.uint8)
        assert self._memory.data_ptr() % _ALIGNMENT_BYTES == 0, (
            "torch aligns allocations to 64 bytes"
        )
        self._start, self._stop = start, stop
        self.tensor = self._memory[start:stop].view(dtype).view(shape)
        poison(self.tensor)

    def check(self, *, what: str = "tensor") -> None:
        """Check that nothing was written before or after the tensor.

        Raises:
            AssertionError: names the side, the distance in bytes and how many bytes changed.
        """
        sides = {
            "before": self._memory[: self._start].flip(0),
            "after": self._memory[self._stop :],
        }
        for side, guard in sides.items():
            changed = guard != _CANARY_BYTE
            if count := int(changed.sum()):
                nearest = int(changed.int().argmax())
                raise AssertionError(
                    f"{what}: {count} guard bytes {side} it were overwritten, "
                    f"the nearest {nearest + 1} bytes away"
                )


@contextlib.contextmanager
def unchanged(**tensors: Tensor | None) -> Iterator[None]:
    """Check that the named tensors hold the same bits after the block as before it.

    Raises:
        AssertionError: names the tensor.
    """
    before = {name: tensor.clone() for name, tensor in tensors.items() if tensor is not None}
    yield
    for name, copy in before.items():
        tensor = tensors[name]
        assert tensor is not None
        if not torch.equal(_bytes(tensor), _bytes(copy)):
            raise AssertionError(f"{name} was written to")


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.contiguous().flatten().view(torch.uint8)
