"""A gang of rank processes: start, signals, progress markers, outcomes, and the end of each.

How a gang is asked for is in spawn.py, what runs inside a rank in rank_process.py.
"""

import contextlib
import multiprocessing
import os
import pickle
import shutil
import signal
import sys
import time
from collections.abc import Iterable
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Self

from tokenfabric.testing.rank_process import Raised, RankSpec, Reported, Returned, rank_main

_PRELOAD = ("torch", "torch.distributed", "numpy", "tokenfabric.testing.rank_process")
# For the fork server too when the parent has them. Every child imports the parent's main module
# again, in a test run that is pytest; transformers costs 4 s a rank.
_PRELOAD_IF_LOADED = ("pytest", "transformers.models.llama.modeling_llama")
_OUTPUT_TAIL_BYTES = 4000

Outcome = Returned | Raised


class RanksFailedError(RuntimeError):
    """At least one rank failed; the text holds the traceback, or exit code and output, of each."""

    def __init__(self, message: str, *, rank: int | None = None, raised: Raised | None = None):
        super().__init__(message)
        self.rank = rank
        """The rank that failed first."""
        self.raised = raised
        """Its exception as plain data; None when the process died without raising."""


class RanksTimeoutError(RanksFailedError):
    """Ranks had not finished at the deadline; the text holds the stack of every thread of each."""


class RankGroup:
    """Ranks that run `fn`, with handles for the parent: signals, progress markers, outcomes.

    A context manager: leaving it kills and reaps every rank and removes the private directory.
    """

    def __init__(self, spec: RankSpec, *, timeout_s: float):
        self._spec = spec
        self._deadline_s = time.monotonic() + timeout_s
        self._timeout_s = timeout_s
        self._markers: list[dict[str, float]] = [{} for _ in range(spec.world_size)]
        self._outcomes: dict[int, Outcome] = {}
        self._connections: dict[int, Connection] = {}
        self._processes: list[BaseProcess] = []
        context = multiprocessing.get_context("forkserver")
        # Every child imports the parent's main module again: in a test run that is pytest.
        also = [module for module in _PRELOAD_IF_LOADED if module in sys.modules]
        context.set_forkserver_preload([*_PRELOAD, *also])
        try:
            for rank in range(spec.world_size):
                self._start(context, rank)
        except BaseException:
            self.close()
            raise

    def _start(self, context: ForkServerContext, rank: int) -> None:
        receiver, sender = context.Pipe(duplex=False)
        self._connections[rank] = receiver
        # Only the rank may hold the writing end, or its death would not show as end of file.
        with sender:
            process = context.Process(
                target=rank_main, args=(self._spec, rank, sender), daemon=True, name=f"rank{rank}"
            )
            process.start()
        self._processes.append(process)

    @property
    def size(self) -> int:
        return self._spec.world_size

    def pid(self, rank: int) -> int:
        """Process id of `rank`."""
        pid = self._processes[rank].pid
        assert pid is not None
        return pid

    def signal(self, rank: int, signal_number: int) -> float:
        """Send a signal to `rank`; return `time.monotonic()` just before it was sent."""
        now_s = time.monotonic()
        os.kill(self.pid(rank), signal_number)
        return now_s

    def kill(self, rank: int) -> float:
        """SIGKILL `rank`; return the time of the signal."""
        return self.signal(rank, signal.SIGKILL)

    def stop(self, rank: int) -> float:
        """SIGSTOP `rank`; return the time of the signal."""
        return self.signal(rank, signal.SIGSTOP)

    def resume(self, rank: int) -> float:
        """SIGCONT `rank`; return the time of the signal."""
        return self.signal(rank, signal.SIGCONT)

    def wait_for(self, marker: str, ranks: Iterable[int] | None = None) -> None:
        """Wait until `ranks` (default: all) have called `report(marker)`.

        Raises:
            RanksFailedError: one of them ended without reporting it.
            RanksTimeoutError: the deadline passed.
        """
        waiting = set(range(self.size) if ranks is None else ranks)
        while waiting := {rank for rank in waiting if marker not in self._markers[rank]}:
            if ended := waiting - self._connections.keys():
                raise self._failure(f"ended before reporting {marker!r}", sorted(ended))
            self._receive(waiting)

    def marker_time_s(self, rank: int, marker: str) -> float:
        """`time.monotonic()` at which `rank` reported `marker` (KeyError when it has not)."""
        return self._markers[rank][marker]

    def join(self, ranks: Iterable[int] | None = None, *, stop_at_failure: bool = False) -> None:
        """Wait until `ranks` (default: all) have exited, or until the first failure.

        Raises:
            RanksTimeoutError: the deadline passed.
        """
        waiting = set(range(self.size) if ranks is None else ranks)
        while waiting := waiting & self._connections.keys():
            self._receive(waiting)
            if stop_at_failure and self.failed_ranks():
                return
        for rank in range(self.size):
            if rank not in self._connections:
                self._processes[rank].join(max(0.0, self._deadline_s - time.monotonic()))

    def failed_ranks(self) -> list[int]:
        """Ranks that raised or died, in the order in which they failed."""
        raised = [
            (outcome.time_s, rank)
            for rank, outcome in self._outcomes.items()
            if isinstance(outcome, Raised)
        ]
        dead = set(range(self.size)) - self._connections.keys() - self._outcomes.keys()
        return [rank for _, rank in sorted(raised)] + sorted(dead)

    def outcome(self, rank: int) -> Outcome | None:
        """What `rank` returned or raised; None when it still runs or died without either."""
        return self._outcomes.get(rank)

    def exit_code(self, rank: int) -> int | None:
        """Exit code of `rank`, negative for a signal; None while it runs."""
        return self._processes[rank].exitcode

    def check(self) -> list[Any]:
        """Return what each rank returned, or raise RanksFailedError for the first that failed."""
        if failed := self.failed_ranks():
            raise self._failure("failed", failed)
        values = [self._outcomes.get(rank) for rank in range(self.size)]
        assert all(isinstance(value, Returned) for value in values)
        return [value.value for value in values if isinstance(value, Returned)]

    def close(self) -> None:
        """Kill and reap every rank that is left; remove the private directory. Idempotent."""
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.join()
        for connection in self._connections.values():
            connection.close()
        self._connections.clear()
        shutil.rmtree(self._spec.directory, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _receive(self, ranks: Iterable[int]) -> None:
        """Take in what the ranks have sent; block until one of `ranks` has sent or ended."""
        watched = {self._connections[rank]: rank for rank in ranks if rank in self._connections}
        ready = wait(list(watched), timeout=max(0.0, self._deadline_s - time.monotonic()))
        if not ready:
            raise self._timeout()
        for connection in ready:
            assert isinstance(connection, Connection)
            rank = watched[connection]
            try:
                message = pickle.loads(connection.recv_bytes())
            except (EOFError, ConnectionResetError):
                connection.close()
                del self._connections[rank]
                continue
            if isinstance(message, Reported):
                self._markers[rank][message.marker] = message.time_s
            else:
                self._outcomes.setdefault(rank, message)

    def _failure(self, what: str, ranks: list[int]) -> RanksFailedError:
        first = self._outcomes.get(ranks[0])
        raised = first if isinstance(first, Raised) else None
        cause = f": {raised.exception_type}: {raised.message}" if raised else ""
        head = f"rank {ranks[0]} of {self.size} {what}{cause}"
        text = "\n".join([head, *(self._report(rank) for rank in ranks)])
        return RanksFailedError(text, rank=ranks[0], raised=raised)

    def _timeout(self) -> RanksTimeoutError:
        running = sorted(self._connections)
        for rank in running:
            with contextlib.suppress(ProcessLookupError):
                self.signal(rank, signal.SIGUSR1)
        time.sleep(0.3)  # for the stack dumps; a stopped rank writes none
        head = f"ranks {running} of {self.size} had not finished after {self._timeout_s:g} s"
        return RanksTimeoutError("\n".join([head, *map(self._report, range(self.size))]))

    def _report(self, rank: int) -> str:
        outcome = self._outcomes.get(rank)
        if isinstance(outcome, Raised):
            state = f"raised\n{outcome.traceback.rstrip()}"
        elif isinstance(outcome, Returned):
            state = "returned"
        elif rank in self._connections:
            state = f"is running\n{_tail(self._spec.stacks_path(rank))}"
        else:
            self._processes[rank].join(1.0)
            code = self.exit_code(rank)
            state = f"died with exit code {code}\n{_tail(self._spec.stacks_path(rank))}"
        output = _tail(self._spec.output_path(rank))
        return f"--- rank {rank} {state.rstrip()}" + (f"\n    output:\n{output}" if output else "")


def _tail(path: Path) -> str:
    try:
        return path.read_bytes()[-_OUTPUT_TAIL_BYTES:].decode(errors="replace").rstrip()
    except FileNotFoundError:
        return ""
