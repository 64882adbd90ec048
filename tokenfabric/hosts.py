"""What a world on several hosts has beside the shared memory of each: agreement and exchange.

The ranks of equal local rank, one per host, form a rail. A collective first compares its callers,
inside each host and along each rail (a difference of size aborts gloo's process, one of dtype is
silently wrong), then moves data: `comm` inside the host, `Rail` between hosts. What fails after the
agreement breaks the world on every rank, with one verdict (watch.py).
"""

import contextlib
import datetime
import math
import os
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import astuple

import torch
import torch.distributed as dist

from tokenfabric import native
from tokenfabric.errors import (
    CommError,
    CommTimeoutError,
    MismatchError,
    PeerLostError,
)
from tokenfabric.links import Links
from tokenfabric.rail import Rail
from tokenfabric.records import (
    Call,
    ExchangeFailedError,
    PeerGoneError,
    PeerSilentError,
    Records,
    VerdictReachedError,
    mismatch,
)
from tokenfabric.topology import HostLayout
from tokenfabric.verdict import Verdict, VerdictKind
from tokenfabric.watch import Watch

__all__ = ["Call", "Hosts"]

# A wait between hosts is ended by the verdict of a rank that knows better who is to blame, if it
# comes within this time: the awaited rank may itself wait for one of its host.
_GRACE_S = 0.3


class Hosts:
    """One rank's part of a world on several hosts. Not for users: `World` owns it.

    Attributes:
        layout: where the ranks lie.
        comm: shared memory among the ranks of this host.
        rail: data between the ranks of equal local rank.
    """

    def __init__(
        self,
        group: dist.ProcessGroup,
        layout: HostLayout,
        links: Links,
        comm: "native.fabric.Communicator",
        timeout_s: float,
    ) -> None:
        """Collective over `group`. Takes over the links."""
        self.layout = layout
        self.comm = comm
        self.timeout_s = timeout_s
        self._links = links
        self._pid = os.getpid()
        self._epoch = 0
        self._scratch: dict[str, torch.Tensor] = {}
        self._shared: dict[str, list[torch.Tensor]] = {}
        self._lock = threading.Lock()
        self._watch = Watch(layout.rank, links.watch, comm)
        self._records = Records(layout.rank, links.records, self._watch.broken_fd)
        try:
            self.rail = Rail(group, layout, datetime.timedelta(seconds=timeout_s + 2 * _GRACE_S))
        except BaseException:
            self.close()
            raise

    @contextlib.contextmanager
    def collective(self, call: Call) -> Iterator[None]:
        """Agree on `call` with all ranks, then let the body move data. Collective.

        Raises:
            MismatchError: the ranks differ; raised on all of them, before the body, and the world
                stays usable.
            PeerLostError, CommTimeoutError: the world is broken, on all ranks.
        """
        with self._lock:
            if (known := self.error()) is not None:
                raise known
            self._epoch += 1
            has_agreed = False
            try:
                self._agree(call)
                has_agreed = True
                yield
            except BaseException as error:
                if isinstance(error, MismatchError) and not has_agreed:
                    raise
                self._break(call, error)
                raise

    def agree(self, call: Call) -> None:
        """Wait until all ranks have made `call`, which moves nothing. Errors as above."""
        with self.collective(call):
            return

    def wait(self, work: dist.Work | None) -> None:
        """Wait for an exchange between hosts, inside `collective`; None: for none."""
        if work is None:
            return
        deadline_s = time.monotonic() + self.timeout_s + _GRACE_S
        slice_s = datetime.timedelta(milliseconds=20)
        while True:
            try:
                work.wait(slice_s)
                return
            except RuntimeError:
                # The slice is over, or the exchange: then the second wait tells how it ended.
                if work.is_completed():
                    try:
                        work.wait()
                    except RuntimeError as error:
                        raise ExchangeFailedError from error
                    return
            if self._watch.verdict is not None:
                raise VerdictReachedError
            if time.monotonic() > deadline_s:
                raise PeerSilentError(self._some_rail_peer())

    def scratch(self, name: str, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """Return uninitialised memory, valid until the collective ends; kept for the next one.

        As much stays allocated as the largest request under each name took.
        """
        num_bytes = math.prod(shape) * dtype.itemsize
        memory = self._scratch.get(name)
        if memory is None or memory.numel() < num_bytes:
            memory = self._scratch[name] = torch.empty(num_bytes, dtype=torch.uint8)
        return memory[:num_bytes].view(dtype).view(tuple(shape))

    def shared(self, name: str, shape: Sequence[int], dtype: torch.dtype) -> list[torch.Tensor]:
        """Return memory of every rank of this host, by local rank, that all of them have mapped.

        Collective over the host, with equal arguments, inside `collective`. Uninitialised. Valid,
        for the peers too, until the next collective; order against them with `comm.barrier`.
        """
        num_bytes = math.prod(shape) * dtype.itemsize
        memory = self._shared.get(name)
        if memory is None or memory[0].numel() < num_bytes:
            size = max(num_bytes, 1)
            symmetric = self.comm.allocate(size)
            memory = self._shared[name] = [
                torch.frombuffer(symmetric.segment(rank), dtype=torch.uint8, count=size)
                for rank in range(self.layout.local_size)
            ]
        return [part[:num_bytes].view(dtype).view(tuple(shape)) for part in memory]

    def error(self) -> CommError | None:
        """Return what every further collective raises, or None while the world works."""
        verdict = self._watch.verdict
        if verdict is None and (found := self.comm.verdict()) is not None:
            verdict = self._watch.declare(_verdict_of(found))
        if verdict is None:
            return None
        return verdict.error(
            rank=self.layout.rank,
            size=self.layout.size,
            timeout_s=self.timeout_s,
            operation=native.fabric.operation_name(verdict.operation),
        )

    def close(self) -> None:
        """Leave the world and give its memory back. Not collective. Called once."""
        if os.getpid() != self._pid:
            return  # gloo would wait for threads that a forked child does not have
        is_broken = self._watch.verdict is not None
        self._watch.close()
        self._links.close()
        if hasattr(self, "rail"):
            self.rail.close(is_broken=is_broken)
        self._scratch.clear()
        self._shared.clear()
        del self.comm

    def _agree(self, call: Call) -> None:
        difference: MismatchError | None = None
        try:
            self.comm.agree(*astuple(call))
        except MismatchError as error:
            difference = error
        record = call.pack(is_agreed=difference is None)
        deadline_s = time.monotonic() + self.timeout_s + _GRACE_S
        theirs = self._records.exchange(record, deadline_s)
        if difference is not None:
            raise difference
        for peer, other in theirs.items():
            if other != record:
                raise mismatch(self.layout.rank, peer, call, other, self._epoch)

    def _break(self, call: Call, error: BaseException) -> None:
        """Break the world on all ranks; raise its verdict unless `error` is this rank's own."""
        me = self.layout.rank
        kind, blamed, is_own = VerdictKind.ABORTED, me, False
        if isinstance(error, PeerLostError | CommTimeoutError):
            found = self.comm.verdict()  # raised by shared memory, so there is one
            assert found is not None
            self._watch.declare(_verdict_of(found))
        elif isinstance(error, PeerGoneError):
            # A death is told by its cause: the watch of this rank, or another's, has its verdict.
            kind, blamed = VerdictKind.PEER_LOST, error.peer
            self._watch.wait(_GRACE_S)
        elif isinstance(error, PeerSilentError):
            kind, blamed = VerdictKind.TIMEOUT, error.peer
        elif isinstance(error, ExchangeFailedError):
            # A connection of gloo's ended; it does not say whose.
            if not self._watch.wait(_GRACE_S) and self.layout.num_hosts == 2:
                kind, blamed = VerdictKind.PEER_LOST, self._some_rail_peer()
        elif not isinstance(error, VerdictReachedError):
            is_own = True
        self._watch.declare(
            Verdict(
                kind=kind, blamed=blamed, reporter=me, operation=call.operation, epoch=self._epoch
            )
        )
        if not is_own:
            raised = self.error()
            assert raised is not None
            raise raised from error

    def _some_rail_peer(self) -> int:
        return min(self._links.records)


def _verdict_of(found: tuple[int, int, int, int, int]) -> Verdict:
    kind, blamed, reporter, operation, epoch = found
    return Verdict(
        kind=VerdictKind(kind), blamed=blamed, reporter=reporter, operation=operation, epoch=epoch
    )
