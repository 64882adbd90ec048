"""Compiled kernels on disk, so that each is compiled once on a machine.

A file is named after a hash of everything that its content depends on, holds a hash of the content,
and appears whole or not at all: it is written beside its place and renamed. Writers that race write
the same. What is kept here runs on the GPU, so nobody else may write to the folder.
"""

import contextlib
import hashlib
import logging
import os
import stat
import tempfile
from pathlib import Path

from tokenfabric.errors import ConfigError
from tokenfabric.log import LOGGER_NAME

_MAGIC = b"tokenfabric kernel 1\n"
_DIGEST_BYTES = hashlib.sha256().digest_size
_PRIVATE = 0o700
_OTHERS_MAY_WRITE = stat.S_IWGRP | stat.S_IWOTH

_log = logging.getLogger(LOGGER_NAME)


class KernelStore:
    """A folder of compiled kernels. Processes and threads may share it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, key: str) -> Path:
        """Return where the kernel of a key is kept."""
        return self.folder / f"{hashlib.sha256(key.encode()).hexdigest()}.kernel"

    def read(self, key: str) -> tuple[str, bytes] | None:
        """Return symbol and code of a kernel; None if it is not there, or damaged.

        Raises:
            ConfigError: see `check`.
        """
        path = self.path(key)
        self.check()
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            _log.warning("kept CUDA kernels cannot be read, this one is compiled: %s", error)
            return None
        start = len(_MAGIC) + _DIGEST_BYTES
        body = content[start:]
        if content[:start] != _MAGIC + hashlib.sha256(body).digest():
            _log.warning("%s is damaged: the kernel is compiled again", path)
            return None
        symbol, _, code = body.partition(b"\0")
        return symbol.decode(), code

    def write(self, key: str, symbol: str, code: bytes) -> None:
        """Keep a kernel. Where that cannot be, the log says so, and later processes compile anew.

        Raises:
            ConfigError: see `check`.
        """
        body = symbol.encode() + b"\0" + code
        try:
            self.folder.mkdir(mode=_PRIVATE, parents=True, exist_ok=True)
            self.check()
            self._write_whole(self.path(key), _MAGIC + hashlib.sha256(body).digest() + body)
        except OSError as error:
            _log.warning("a CUDA kernel cannot be kept in %s: %s", self.folder, error)

    def _write_whole(self, path: Path, content: bytes) -> None:
        number, name = tempfile.mkstemp(prefix=".new-", dir=self.folder)
        try:
            with os.fdopen(number, "wb") as file:
                file.write(content)
            os.replace(name, path)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name)
            raise

    def check(self) -> None:
        """See that the folder, if it is there, is this user's alone.

        Raises:
            ConfigError: others can write to it.
        """
        try:
            found = self.folder.stat()
        except OSError:
            return
        if found.st_uid != os.geteuid() or found.st_mode & _OTHERS_MAY_WRITE:
            raise ConfigError(
                f"{self.folder} belongs to user {found.st_uid} with mode "
                f"{stat.filemode(found.st_mode)}: CUDA kernels that run as this user are kept "
                "there, and nobody else may write to it. Change that, or name another folder with "
                "TOKENFABRIC_CACHE_DIR"
            )
