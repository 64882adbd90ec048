"""Hosts that only a network connects, on one machine: Linux network namespaces and a veth pair.

Needs root and iproute2. For tests and benchmarks of several hosts; two of them are enough there.
"""

import contextlib
import ctypes
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_CLONE_NEWNET = 0x40000000


@dataclass(frozen=True, slots=True)
class Namespace:
    """One of two hosts."""

    name: str
    interface: str
    address: str

    def enter(self) -> None:
        """Move the calling thread, and those that it starts later, into the namespace."""
        with Path("/run/netns", self.name).open() as file:
            library = ctypes.CDLL(None, use_errno=True)
            if library.setns(file.fileno(), _CLONE_NEWNET) != 0:
                raise OSError(ctypes.get_errno(), f"cannot enter network namespace {self.name}")


class NamespacesUnavailableError(RuntimeError):
    """This machine cannot make network namespaces; the text says why."""


@contextlib.contextmanager
def two_namespaces() -> Iterator[tuple[Namespace, Namespace]]:
    """Make two namespaces with one link between them; remove both in the end.

    Raises:
        NamespacesUnavailableError: no root, no iproute2, or a container that does not allow it.
    """
    if os.geteuid() != 0:
        raise NamespacesUnavailableError("network namespaces need root")
    names = [f"tokenfabric-{os.getpid()}-{side}" for side in "ab"]
    # Interface names have at most 15 characters.
    hosts = [
        Namespace(name, f"tf{os.getpid() % 10**7}{side}", f"10.213.0.{number}")
        for number, (name, side) in enumerate(zip(names, "ab", strict=True), start=1)
    ]
    first, second = hosts
    with contextlib.ExitStack() as undo:
        for host in hosts:
            _ip("netns", "add", host.name)
            undo.callback(_ip, "netns", "del", host.name)
        _ip(
            *("link", "add", first.interface, "netns", first.name, "type", "veth"),
            *("peer", "name", second.interface, "netns", second.name),
        )
        for host in hosts:
            _ip("-n", host.name, "addr", "add", f"{host.address}/24", "dev", host.interface)
            _ip("-n", host.name, "link", "set", host.interface, "up")
            _ip("-n", host.name, "link", "set", "lo", "up")
        yield first, second


def _ip(*arguments: str) -> None:
    command = ("ip", *arguments)
    try:
        subprocess.run(command, check=True, capture_output=True, text=True)
    except FileNotFoundError:
        raise NamespacesUnavailableError("network namespaces need ip (iproute2)") from None
    except subprocess.CalledProcessError as error:
        reason = f"{' '.join(command)} failed: {error.stderr.strip()}"
        raise NamespacesUnavailableError(reason) from error
