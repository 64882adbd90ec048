"""The index of a checkpoint, read without running what it says.

torch.distributed.checkpoint keeps its index (which tensors, where) as a pickle, and a pickle may
name any function to be called. Here it may name what an index consists of and nothing else. Entries
that are no tensors, which torch would unpickle freely, are left out: nobody can ask for them.
"""

import pickle
from pathlib import Path
from typing import Any

from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

from tokenfabric.errors import ConfigError

INDEX = ".metadata"

_DTYPES = ("float64", "float32", "float16", "bfloat16", "int64", "int32", "uint8", "bool")
_ALLOWED = {
    "torch.distributed.checkpoint.metadata": {
        "Metadata", "MetadataIndex", "StorageMeta", "TensorStorageMetadata", "TensorProperties",
        "ChunkStorageMetadata", "BytesStorageMetadata", "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.serialization": {"_get_layout"},
    "torch": {"Size", *_DTYPES},
    "pathlib": {"PosixPath"},
    "pathlib._local": {"PosixPath"},
}  # fmt: skip


class _IndexUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        # A name with a dot would reach what an allowed class has as an attribute.
        if name not in _ALLOWED.get(module, ()):
            raise pickle.UnpicklingError(f"it names {module}.{name}, which no index needs")
        return super().find_class(module, name)


def read_index(folder: Path) -> Metadata:
    """Return what a checkpoint's index says of its tensors.

    Raises:
        ConfigError: it is missing or damaged, names what no index needs, or points out of the
            folder. Nothing that it names was called.
    """
    path = folder / INDEX
    try:
        with path.open("rb") as file:
            index = _IndexUnpickler(file).load()
        if not isinstance(index, Metadata):
            raise pickle.UnpicklingError(f"it is a {type(index).__name__}")
        _check(index)
    except Exception as error:  # damaged bytes may raise anything
        raise ConfigError(f"{path} is no index of a checkpoint's tensors: {error}") from error
    tensors = {
        name: entry
        for name, entry in index.state_dict_metadata.items()
        if isinstance(entry, TensorStorageMetadata)
    }
    index.state_dict_metadata = tensors  # type: ignore[assignment]
    return index


def _check(index: Metadata) -> None:
    for item in index.storage_data.values():
        if Path(item.relative_path).name != item.relative_path:
            raise pickle.UnpicklingError(f"it points to {item.relative_path}")


class IndexedReader(FileSystemReader):
    """Reads a checkpoint's files as an index says that was read already."""

    def __init__(self, folder: Path, index: Metadata) -> None:
        """Read nothing yet; `index` as `read_index` returns it."""
        super().__init__(folder)
        self._index = index

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """Return the index."""
        assert self._index.storage_meta is not None, "torch writes one"
        self._index.storage_meta.load_id = self.load_id
        return self._index
