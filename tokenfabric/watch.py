"""Who of a world on several hosts is gone: one thread per rank that tells it at once.

Every rank keeps a connection to the ranks of its host and of its rail, hence is at most one relay
away from any other. A connection that ends without a farewell is a death. The first verdict that
reaches a rank is kept, breaks the shared-memory world of its host and is passed on once.

The thread never touches the world's collectives: they look at `verdict`, or poll `broken_fd`.
"""

import contextlib
import os
import select
import socket
import threading
import weakref
from typing import TYPE_CHECKING

from tokenfabric.verdict import Verdict, VerdictKind

if TYPE_CHECKING:
    from tokenfabric import native


class Watch:
    """The watch of one rank. Owns its connections; `close` says farewell on them."""

    def __init__(
        self, rank: int, links: dict[int, socket.socket], comm: "native.fabric.Communicator"
    ) -> None:
        """Start watching.

        Args:
            rank: this rank of the world.
            links: connections by rank; taken over.
            comm: of the ranks of this host; broken with every verdict.
        """
        self.rank = rank
        self.verdict: Verdict | None = None
        self.broken_fd = os.eventfd(0, os.EFD_CLOEXEC)
        """Readable once there is a verdict."""
        self._stop_fd = os.eventfd(0, os.EFD_CLOEXEC)
        self._links = links
        self._comm: native.fabric.Communicator | None = comm
        # Reentrant: the garbage collector may close a dropped world in the middle of `declare`.
        self._lock = threading.RLock()
        self._broken = threading.Event()
        self._thread = threading.Thread(
            target=self._run, name=f"tokenfabric-watch-{rank}", daemon=True
        )
        self._thread.start()
        # A child that outlives this process would keep its connections open, and with them this
        # rank alive in the eyes of the others.
        me = weakref.ref(self)
        os.register_at_fork(after_in_child=lambda: _forget(me()))

    def declare(self, verdict: Verdict) -> Verdict:
        """Break the world on every rank that can be reached; return the verdict that counts.

        Only the first one does: a rank that goes because of it is a consequence, not a cause.
        """
        with self._lock:
            if self.verdict is not None:
                return self.verdict
            self.verdict = verdict
            if self._comm is not None:
                self._comm.break_world(
                    verdict.kind,
                    verdict.blamed,
                    verdict.reporter,
                    verdict.operation,
                    verdict.epoch,
                )
            self._tell(verdict)
            self._broken.set()
            os.eventfd_write(self.broken_fd, 1)
        return verdict

    def wait(self, timeout_s: float) -> bool:
        """Wait for a verdict; return whether there is one."""
        return self._broken.wait(timeout_s)

    def close(self) -> None:
        """Say farewell, end the thread and close the connections. Closing twice is allowed."""
        with self._lock:
            if self._comm is None:
                return
            self._comm = None
            os.eventfd_write(self._stop_fd, 1)
        # The garbage collector may run this on the thread itself, which then ends on its own.
        if self._thread is not threading.current_thread():
            self._thread.join()

    def _tell(self, verdict: Verdict) -> None:
        for link in self._links.values():
            # Who cannot be told is gone, or hears it from the ranks it waits for. Never blocks: a
            # handful of bytes in all go over such a connection.
            with contextlib.suppress(OSError):
                link.send(verdict.pack(), socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)

    def _run(self) -> None:
        poller = select.poll()
        poller.register(self._stop_fd, select.POLLIN)
        peers = {link.fileno(): peer for peer, link in self._links.items()}
        for descriptor in peers:
            poller.register(descriptor, select.POLLIN)
        while True:
            for descriptor, _ in poller.poll():
                if descriptor == self._stop_fd:
                    self._release()
                    return
                self._listen(peers[descriptor])
                poller.unregister(descriptor)  # nothing follows

    def _release(self) -> None:
        if self.verdict is None:
            self._tell(Verdict(kind=VerdictKind.NONE, blamed=self.rank, reporter=self.rank))
        for link in self._links.values():
            _close_politely(link)
        os.close(self._stop_fd)
        os.close(self.broken_fd)

    def _listen(self, peer: int) -> None:
        """Take in what a peer's connection has: a verdict, a farewell, or its end."""
        try:
            data = self._links[peer].recv(Verdict.NUM_BYTES, socket.MSG_WAITALL)
            verdict = Verdict.unpack(data) if data else None
        except (OSError, ValueError):
            verdict = None
        if verdict is None:
            verdict = Verdict(kind=VerdictKind.PEER_LOST, blamed=peer, reporter=self.rank)
        if verdict.kind is not VerdictKind.NONE:
            self.declare(verdict)


def _forget(watch: Watch | None) -> None:
    if watch is not None:
        for link in watch._links.values():
            link.close()


def _close_politely(link: socket.socket) -> None:
    # Closing a connection with unread bytes resets it, and the reset can overtake the farewell.
    with contextlib.suppress(OSError):
        link.shutdown(socket.SHUT_WR)
        while link.recv(4096, socket.MSG_DONTWAIT):
            continue
    link.close()
