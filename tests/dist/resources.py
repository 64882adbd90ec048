"""What a process or a machine holds that could leak: descriptors, shared mappings, files."""

import os
import re
from collections.abc import Iterable
from pathlib import Path

_MAPPING = re.compile(r"^\S+ \S+ \S+ \S+ (?P<inode>\d+) +/memfd:tokenfabric", re.MULTILINE)


def open_descriptors() -> dict[int, str]:
    """Return this process's descriptors and what they refer to, sockets and pipes by kind."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:
            continue  # the descriptor of the listing itself
    return found


def shared_segments(pids: Iterable[int] | None = None) -> set[int]:
    """Return the inodes of our shared memory that processes (default: all) have mapped."""
    if pids is None:
        pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    found: set[int] = set()
    for pid in pids:
        try:
            maps = Path(f"/proc/{pid}/maps").read_text()
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue  # it has just ended, or is none of ours
        found |= {int(match["inode"]) for match in _MAPPING.finditer(maps)}
    return found


def affinity_of_threads() -> set[frozenset[int]]:
    """Return the different sets of cores that threads of this process may run on."""
    found = set()
    for name in os.listdir("/proc/self/task"):
        try:
            found.add(frozenset(os.sched_getaffinity(int(name))))
        except ProcessLookupError:
            continue  # it has just ended
    return found


def files_left(private_folder: Path) -> list[str]:
    """Return what is left in a folder that ranks had as their TMPDIR, and in /dev/shm."""
    in_shm = (str(path) for path in Path("/dev/shm").glob("*tokenfabric*"))
    return sorted([*(str(path) for path in private_folder.iterdir()), *in_shm])
