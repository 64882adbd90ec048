"""Arrays of other libraries as tensors, without a copy."""

from typing import TypeVar

import torch
from torch.utils import dlpack

from tokenfabric.errors import ConfigError

Array = TypeVar("Array")


def from_dlpack(array: Array) -> Array | torch.Tensor:
    """Return a tensor that shares an array's memory; tensors and None as they are.

    For arrays on a GPU the current stream waits until they are ready.

    Raises:
        ConfigError: it has no DLPack, or cannot be shared (read-only, or of an unknown dtype).
    """
    if array is None or isinstance(array, torch.Tensor):
        return array
    try:
        return dlpack.from_dlpack(array)
    except (AttributeError, BufferError, RuntimeError, TypeError) as error:
        raise ConfigError(
            f"a {type(array).__name__} cannot be taken through DLPack: {error}"
        ) from None
