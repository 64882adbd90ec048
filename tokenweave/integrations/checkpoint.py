"""A directory of safetensors files, read in parts. Building a model from it is in loader.py."""

import contextlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from tokenfabric.errors import ConfigError
from tokenweave.integrations.sharding import ParameterShard

_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
"""Of the tensors that a model's parameters can be; others (quantized ones) are refused."""


class StoredTensors(Protocol):
    """Tensors that a model's parameters can be read from, under the names of the parameters."""

    @property
    def names(self) -> Sequence[str]:
        """Names of all tensors."""
        ...

    def __contains__(self, name: str) -> bool: ...

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor without reading it."""
        ...

    def num_bytes(self, name: str) -> int:
        """Return the bytes that a tensor takes in its file; an unknown dtype counts as bytes."""
        ...

    def dtype(self, name: str) -> torch.dtype:
        """Return the dtype of a tensor without reading it; ConfigError if no parameter has it."""
        ...

    def read(
        self, name: str, shard: ParameterShard | None, rank: int, dtype: torch.dtype
    ) -> Tensor:
        """Return `rank`'s share of a tensor (all of it without a shard) in memory of its own."""
        ...


class Checkpoint:
    """The tensors of one directory: model.safetensors, or several files with an index.

    A context manager: the files are open inside. Reading a part touches only that part of a file.

    Raises:
        ConfigError: the directory holds no readable safetensors checkpoint.
    """

    def __init__(self, directory: Path):
        self._directory = directory
        self._files = contextlib.ExitStack()
        self._file_of: dict[str, Any] = {}
        self.bytes_read = 0
        """Bytes of the parts read so far, as stored in the files."""
        self.total_bytes = 0
        """Bytes of all tensors in the files."""

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as undo:
            undo.callback(self._files.close)
            for path in self._paths():
                self._open(path)
            undo.pop_all()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._files.close()

    def __contains__(self, name: str) -> bool:
        return name in self._file_of

    @property
    def names(self) -> Sequence[str]:
        """Names of all tensors."""
        return tuple(self._file_of)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor without reading it."""
        return tuple(self._slice(name).get_shape())

    def num_bytes(self, name: str) -> int:
        """Return the bytes that a tensor takes in its file; an unknown dtype counts as bytes."""
        stored = self._slice(name).get_dtype()
        return math.prod(self.shape(name)) * (_DTYPES[stored].itemsize if stored in _DTYPES else 1)

    def dtype(self, name: str) -> torch.dtype:
        """Return the dtype of a tensor without reading it.

        Raises:
            ConfigError: it is none that a parameter can have.
        """
        stored = self._slice(name).get_dtype()
        if stored not in _DTYPES:
            raise ConfigError(
                f"{name} in {self._directory} is {stored}; supported are {', '.join(_DTYPES)}: "
                f"quantized checkpoints are not"
            )
        return _DTYPES[stored]

    def read(
        self, name: str, shard: ParameterShard | None, rank: int, dtype: torch.dtype
    ) -> Tensor:
        """Return `rank`'s share of a tensor (all of it without a shard) in memory of its own."""
        indices = ((slice(None),),) if shard is None else shard.indices(rank)
        stored = self._slice(name)
        parts: list[Tensor] = [stored[index] for index in indices]
        self.bytes_read += sum(part.numel() * part.element_size() for part in parts)
        # What safetensors returns may be a view into the mapped file.
        own = [part.to(dtype, copy=True, memory_format=torch.contiguous_format) for part in parts]
        return own[0] if shard is None or len(own) == 1 else torch.cat(own, dim=shard.dim)

    def _slice(self, name: str) -> Any:
        return self._file_of[name].get_slice(name)

    def _paths(self) -> list[Path]:
        index = self._directory / _INDEX
        if index.is_file():
            names = json.loads(index.read_text())["weight_map"].values()
            return [self._directory / name for name in sorted(set(names))]
        if (self._directory / _SINGLE).is_file():
            return [self._directory / _SINGLE]
        raise ConfigError(
            f"{self._directory} holds neither {_SINGLE} nor {_INDEX}; "
            f"convert the checkpoint with save_pretrained(), or give the path of a GGUF file"
        )

    def _open(self, path: Path) -> None:
        try:
            file: Any = self._files.enter_context(safe_open(path, framework="pt"))
        except (OSError, SafetensorError) as error:
            raise ConfigError(f"cannot read {path}: {error}") from error
        for name in file.keys():  # noqa: SIM118 - the file is no mapping
            self._file_of[name] = file
            self.total_bytes += self.num_bytes(name)
