"""Processes of this machine, as /proc tells of them."""

from pathlib import Path


def is_running(pid: int) -> bool:
    """Return whether a process is there and has not ended."""
    return _stat(pid) not in (None, "Z")


def name_of(pid: int) -> str:
    """Return a process's command line, shortened; empty if it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()[:80].strip()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def descendants(pid: int) -> set[int]:
    """Return the processes that a process started, and those that they started, and so on."""
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal() and (parent := _parent(int(folder.name))) is not None:
            children.setdefault(parent, []).append(int(folder.name))
    found: set[int] = set()
    left = [pid]
    while left:
        new = [child for child in children.get(left.pop(), []) if child not in found]
        found.update(new)
        left += new
    return found


def _fields(pid: int) -> list[str] | None:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None


def _stat(pid: int) -> str | None:
    fields = _fields(pid)
    return None if fields is None else fields[0]


def _parent(pid: int) -> int | None:
    fields = _fields(pid)
    return None if fields is None else int(fields[1])
