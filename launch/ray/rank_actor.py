"""One rank as a Ray actor. Knows no ray: gang.py makes an actor of the class."""

import os
import queue
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, cast

from launch.failure import describe
from launch.job import JobSpec
from launch.ray.fate import end_with_raylet
from launch.report import Reporter, SilentReporter, Table
from tokenfabric.env import RankInfo

if TYPE_CHECKING:
    from launch.recipes.session import Session
    from tokenfabric.world import World

Event = tuple[str, Any]
"""("note" | "text", str), ("table", fields of Table), ("item", part of a session's answer),
("failure", fields of Failure), or ("result", what the recipe returned)."""


class RankActor:
    """Runs one job. Its process ends with it."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        """Set variables that are read when modules are imported."""
        os.environ.update(environment)
        end_with_raylet()
        self._store: Any = None
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._requests: queue.SimpleQueue[Mapping[str, Any]] = queue.SimpleQueue()

    def listen(self, host: str) -> int:
        """Open the ranks' store on one interface of this node; return its port.

        The socket stays open from here on: nobody else can take the port meanwhile.
        """
        from launch.store import open_store

        self._store, port = open_store(host)
        return port

    def run(self, spec: JobSpec, info: RankInfo) -> Iterator[Event]:
        """Run a job as a rank; yield what it says as it says it, and last its result or failure."""
        _set_variables(info)
        reporter = _Sender(self._events) if info.rank == 0 else SilentReporter()
        self._start(_run_recipe, spec, info.rank, reporter, self._events)
        yield from self._until_done()

    def serve(self, spec: JobSpec, info: RankInfo) -> Iterator[Event]:
        """Open a job's session as a rank; it answers `ask` until the process ends."""
        _set_variables(info)
        reporter = _Sender(self._events) if info.rank == 0 else SilentReporter()
        self._start(_run_session, spec, info.rank, reporter, self._requests, self._events)
        yield from self._until_done()

    def ask(self, request: Mapping[str, Any]) -> Iterator[Event]:
        """Give the session a request; yield what it says, and last a result or failure."""
        self._requests.put(request)
        yield from self._until_done()

    def _start(self, function: Callable[..., None], *args: object) -> None:
        # Beside the actor's own thread, which passes on what is said meanwhile.
        threading.Thread(target=function, args=args, daemon=True).start()

    def _until_done(self) -> Iterator[Event]:
        while True:
            event = self._events.get()
            yield event
            if event[0] in ("result", "failure"):
                return


def _set_variables(info: RankInfo) -> None:
    os.environ.update(
        RANK=str(info.rank),
        WORLD_SIZE=str(info.world_size),
        LOCAL_RANK=str(info.local_rank),
        LOCAL_WORLD_SIZE=str(info.local_world_size),
        MASTER_ADDR=info.master_addr,
        MASTER_PORT=str(info.master_port),
        # torch's: the store is there already, nobody opens another.
        TORCHELASTIC_USE_AGENT_STORE="True",
    )


class _Sender:
    """A Reporter whose words go to the driver."""

    def __init__(self, events: "queue.SimpleQueue[Event]") -> None:
        self._events = events

    def note(self, text: str) -> None:
        self._events.put(("note", text))

    def text(self, piece: str) -> None:
        self._events.put(("text", piece))

    def table(self, table: Table) -> None:
        self._events.put(("table", asdict(table)))


def _run_recipe(
    spec: JobSpec, rank: int, reporter: Reporter, events: "queue.SimpleQueue[Event]"
) -> None:
    try:
        from launch.rank import run_rank

        events.put(("result", run_rank(spec, spec.num_threads, reporter=reporter)))
    except BaseException as error:  # told to the driver, which ends all ranks
        events.put(("failure", asdict(describe(error, rank))))


def _run_session(
    spec: JobSpec,
    rank: int,
    reporter: Reporter,
    requests: "queue.SimpleQueue[Mapping[str, Any]]",
    events: "queue.SimpleQueue[Event]",
) -> None:
    """Run a recipe that opens a session in its world, and then answer for ever."""

    def answers(world: "World", reporter: Reporter, **args: Any) -> None:
        opened = cast("AbstractContextManager[Session]", load_recipe(spec)(world, reporter, **args))
        with opened as session:
            while True:
                events.put(("result", None))
                for item in session(**requests.get()):
                    if rank == 0:
                        events.put(("item", item))

    try:
        from launch.rank import load_recipe, run_rank

        run_rank(spec, spec.num_threads, reporter=reporter, recipe=answers)
    except BaseException as error:  # told to the driver, which ends all ranks
        events.put(("failure", asdict(describe(error, rank))))
