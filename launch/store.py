"""torch's TCPStore, listening on one interface alone; waits that Control-C ends."""

import datetime
import os
import socket
import time
from collections.abc import Sequence

from torch._C._distributed_c10d import Store, TCPStore
from torch.distributed import DistError

from tokenfabric.errors import TopologyError

LOOPBACK = "127.0.0.1"
_PAUSE_S = 0.05
_FOR_EVER = datetime.timedelta(days=365)


class StoreLostError(Exception):
    """Whoever kept the store is gone."""


def open_store(host: str, port: int = 0) -> tuple[TCPStore, int]:
    """Keep a store in this process, on the interface of an address of this host.

    The socket is open from here on: nobody else can take the port meanwhile.

    Args:
        host: name or address.
        port: 0: one that is free.

    Returns:
        The store and its port.

    Raises:
        TopologyError: the address is none of this host, or the port is taken.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.create_server(address[:2], family=family)
    except socket.gaierror as error:
        raise TopologyError(f"{host} is no name or address: {error.strerror}") from None
    except OSError as error:
        raise TopologyError(
            f"this host cannot listen on {_at(host, port)} ({os.strerror(error.errno or 0)}): name "
            "an address of this host, and a port that is free"
        ) from None
    port = int(listener.getsockname()[1])
    store = TCPStore(
        host_name=host, port=port, is_master=True,
        wait_for_workers=False, master_listen_fd=listener.detach(),
    )  # fmt: skip
    return store, port


def join_store(host: str, port: int, timeout_s: float) -> TCPStore:
    """Connect to a store that another process keeps, as soon as it is there.

    Raises:
        TopologyError: nobody answers in time.
    """
    deadline_s = time.monotonic() + timeout_s
    while True:
        try:
            socket.create_connection((host, port), timeout=max(0.1, timeout_s)).close()
            return TCPStore(
                host, port, is_master=False, wait_for_workers=False,
                timeout=datetime.timedelta(seconds=max(1.0, deadline_s - time.monotonic())),
            )  # fmt: skip
        except socket.gaierror as error:
            raise TopologyError(f"{host} is no name or address: {error.strerror}") from None
        except (OSError, DistError) as error:
            if time.monotonic() > deadline_s:
                reason = error.strerror if isinstance(error, OSError) else str(error)
                raise TopologyError(
                    f"nobody answers at {_at(host, port)} after {timeout_s:g} s ({reason}): start "
                    "node 0, and check that this host can reach it"
                ) from None
            time.sleep(0.1)


def wait_for(store: Store, keys: Sequence[str], timeout_s: float) -> bool:
    """Wait until a store has all keys; return whether it has them in time. Control-C ends it.

    Raises:
        StoreLostError: whoever kept it is gone.
    """
    deadline_s = time.monotonic() + timeout_s
    while True:
        try:
            # Not wait(), which no signal ends and which writes to stderr when its time is over.
            if store.check(list(keys)):
                return True
        except DistError as error:
            raise StoreLostError(str(error)) from None
        if time.monotonic() > deadline_s:
            return False
        time.sleep(_PAUSE_S)


def wait_for_ever(store: Store, key: str) -> None:
    """Wait until a store has a key, at no cost; for a thread of its own, since no signal ends it.

    Raises:
        StoreLostError: whoever kept it is gone.
    """
    try:
        store.wait([key], _FOR_EVER)
    except DistError as error:
        raise StoreLostError(str(error)) from None


def _at(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
