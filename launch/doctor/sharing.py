"""Does this system let processes share memory the way ranks do? Each step is really taken.

The same calls as csrc/fabric/ makes, from Python, so that they can be tried without it.
"""

import fcntl
import mmap
import os
import select
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from launch.doctor.machine import Trial

_NUM_BYTES = 1 << 16
_WORDS = b"tokenfabric"
_TIMEOUT_S = 10.0


def try_sharing() -> tuple[Trial, ...]:
    """Return how each step went. Takes some milliseconds; nothing is left behind."""
    return tuple(
        _tried(name, step)
        for name, step in (
            ("memfd_create, sealed", _make_segment),
            ("passing a descriptor (SCM_RIGHTS)", _pass_descriptor),
            ("pidfd_open", _watch_process),
            ("sockets in the temporary folder", _meet),
        )
    )


def _tried(name: str, step: Callable[[], None]) -> Trial:
    try:
        step()
    except Exception as error:  # whatever a system comes up with: it is the answer
        return Trial(name=name, problem=f"{type(error).__name__}: {error}")
    return Trial(name=name, problem=None)


def _make_segment() -> None:
    os.close(_segment())


def _segment() -> int:
    fd = os.memfd_create("tokenfabric-doctor", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.posix_fallocate(fd, 0, _NUM_BYTES)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _pass_descriptor() -> None:
    """Write through one mapping of a segment and read through a mapping of what was passed on."""
    with ExitStack() as stack:
        sent = _segment()
        stack.callback(os.close, sent)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        stack.enter_context(ours)
        stack.enter_context(theirs)
        socket.send_fds(ours, [b"x"], [sent])
        theirs.settimeout(_TIMEOUT_S)
        _, received, _, _ = socket.recv_fds(theirs, 1, 1)
        for fd in received:
            stack.callback(os.close, fd)
        if not received:
            raise OSError("no descriptor arrived with the message")
        written = stack.enter_context(mmap.mmap(sent, _NUM_BYTES))
        read = stack.enter_context(mmap.mmap(received[0], _NUM_BYTES))
        written[: len(_WORDS)] = _WORDS
        if read[: len(_WORDS)] != _WORDS:
            raise OSError("what one mapping of the memory wrote, the other one does not see")


def _watch_process() -> None:
    """Learn of a process's end through its handle, as ranks learn of each other's."""
    process = subprocess.Popen([sys.executable, "-S", "-E", "-c", ""])
    try:
        handle = os.pidfd_open(process.pid)
        try:
            if not select.select([handle], [], [], _TIMEOUT_S)[0]:
                raise TimeoutError("the end of a process was not reported through its handle")
        finally:
            os.close(handle)
    finally:
        process.kill()
        process.wait()


def _meet() -> None:
    with tempfile.TemporaryDirectory(prefix="tokenfabric-doctor-") as folder, ExitStack() as stack:
        path = str(Path(folder) / "socket")
        listener = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
        caller = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
        listener.bind(path)
        listener.listen()
        caller.connect(path)
