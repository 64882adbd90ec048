"""Where the ranks of a job leave files for the process that started them: a folder of its own."""

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_PREFIX = "tokenfabric-job-"
_OWNER = ".owner"
# A folder without its lock is about to get it.
_YOUNG_S = 60.0


@contextmanager
def job_folder() -> Iterator[Path]:
    """Make a private folder, removed in the end; remove those of launchers that were killed.

    Its owner holds a lock on a file in it, which the kernel takes back when the owner dies.
    """
    _sweep()
    with tempfile.TemporaryDirectory(prefix=_PREFIX) as name:  # mode 0700
        folder = Path(name)
        with (folder / _OWNER).open("w") as owner:
            fcntl.flock(owner, fcntl.LOCK_EX)
            yield folder


def _sweep() -> None:
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        try:
            if folder.stat().st_uid == os.geteuid() and _is_left(folder):
                shutil.rmtree(folder)
        except FileNotFoundError:
            continue  # its owner, or another sweep, was quicker


def _is_left(folder: Path) -> bool:
    owner = folder / _OWNER
    if not owner.exists():
        return time.time() - folder.stat().st_mtime > _YOUNG_S
    with owner.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True
