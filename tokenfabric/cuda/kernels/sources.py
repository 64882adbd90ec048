"""The device sources of a kernel: its file and what that includes, all of it ours.

A wheel has them in tokenfabric/csrc, where setup.py puts them; a checkout in csrc beside the
packages.
"""

import hashlib
import re
from functools import cache
from pathlib import Path

from tokenfabric.errors import TokenFabricError

_PACKAGE = Path(__file__).resolve().parents[2]
_INCLUDE = re.compile(r'^\s*#include "([^"]+)"', re.MULTILINE)


@cache
def source_root() -> Path:
    """Return the folder that the files of kernels are named from.

    Raises:
        TokenFabricError: this install has no sources.
    """
    for folder in (_PACKAGE / "csrc", _PACKAGE.parent / "csrc"):
        if (folder / "include" / "token").is_dir():
            return folder
    raise TokenFabricError(
        f"the sources of the CUDA kernels are not in {_PACKAGE / 'csrc'}: the install is not "
        "complete, install the package again"
    )


def include_folders(root: Path) -> tuple[Path, ...]:
    """Return where a compiler looks for headers that are not beside the one that asks."""
    return (root, root / "include")


def closure(root: Path, file: str) -> tuple[Path, ...]:
    """Return a file and all that it includes, each once, sorted.

    Raises:
        TokenFabricError: one of them is missing.
    """
    found: set[Path] = set()
    todo = [root / file]
    while todo:
        path = todo.pop().resolve()
        if path in found:
            continue
        found.add(path)
        for name in _INCLUDE.findall(_read(path)):
            todo.append(_find(name, (path.parent, *include_folders(root)), path))
    return tuple(sorted(found))


def digest(root: Path, file: str) -> str:
    """Return a hash of everything that a kernel's file is compiled from."""
    content = hashlib.sha256()
    for path in closure(root, file):
        content.update(f"{path.relative_to(root.resolve())}\n".encode())
        content.update(hashlib.sha256(_read(path).encode()).digest())
    return content.hexdigest()


def _find(name: str, folders: tuple[Path, ...], asker: Path) -> Path:
    for folder in folders:
        if (folder / name).is_file():
            return folder / name
    raise TokenFabricError(f"{asker} includes {name}, which is not among the CUDA sources")


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError as error:
        raise TokenFabricError(f"a source of the CUDA kernels cannot be read: {error}") from None
