"""What runs inside one spawned rank: set-up, the rank function, its outcome, tear-down.

The parent's side (start, wait, kill, reap) is in rank_group.py. The two talk over one pipe per
rank, in pickles without torch's shared-memory reductions: a result outlives its rank.
"""

import contextlib
import ctypes
import faulthandler
import os
import pickle
import signal
import sys
import time
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from tokenfabric.cores import pin_process, plan_on_this_host

_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class RankSpec:
    """Everything a rank needs to start; the same on all ranks."""

    payload: bytes
    """Pickled `(fn, args)`; unpickled in the rank, where a bad import is its failure."""
    world_size: int
    directory: Path
    """Private directory (0700) of this gang: file store, captured output, stack dumps."""
    with_world: bool
    pass_report: bool
    """Give `fn` a `report(marker)` callable before its own arguments."""
    comm_timeout_s: float
    num_threads: int
    environment: Mapping[str, str]
    capture: bool
    pin: bool

    def output_path(self, rank: int) -> Path:
        return self.directory / f"rank{rank}.output"

    def stacks_path(self, rank: int) -> Path:
        return self.directory / f"rank{rank}.stacks"


@dataclass(frozen=True, kw_only=True, slots=True)
class Reported:
    """The rank function called `report(marker)`."""

    marker: str
    time_s: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Returned:
    """The rank function returned and tear-down succeeded."""

    value: Any
    time_s: float
    """`time.monotonic()` when the function returned: one clock for all processes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Raised:
    """The rank function, or the set-up before it, raised."""

    exception_type: str
    """Class name of the exception."""
    bases: tuple[str, ...]
    """Class names of its method resolution order, itself first."""
    message: str
    traceback: str
    time_s: float
    """`time.monotonic()` when the exception left the function."""
    attributes: dict[str, Any] = field(default_factory=dict)
    """Plain attributes of the exception (`rank`, `peer_rank`, `operation`, `epoch`, ...)."""


Message = Reported | Returned | Raised


def describe_exception(error: BaseException) -> Raised:
    """Return `error` as plain data; attributes that are not plain are left out."""
    names = {*getattr(error, "__dict__", {}), "rank", "peer_rank", "operation", "epoch"}
    values = {name: getattr(error, name) for name in sorted(names) if hasattr(error, name)}
    plain = {k: v for k, v in values.items() if isinstance(v, int | float | str | None)}
    return Raised(
        exception_type=type(error).__name__,
        bases=tuple(base.__name__ for base in type(error).__mro__),
        message=str(error),
        traceback="".join(traceback.format_exception(error)),
        time_s=time.monotonic(),
        attributes=plain,
    )


def rank_main(spec: RankSpec, rank: int, connection: Connection) -> None:
    """Run one rank to its end and send its outcome. Entry point of the child process."""

    def send(message: Message) -> None:
        # When the parent is gone, the death signal ends this process anyway.
        with contextlib.suppress(BrokenPipeError):
            connection.send_bytes(pickle.dumps(message))

    def report(marker: str) -> None:
        send(Reported(marker=marker, time_s=time.monotonic()))

    _isolate(spec, rank)
    try:
        fn, args = pickle.loads(spec.payload)
        with _process_group(spec, rank), _first_arguments(spec, rank) as head:
            if spec.pass_report:
                head = (*head, report)
            try:
                value = fn(*head, *args)
            except BaseException as error:
                # Sent before tear-down: a tear-down that hangs or fails must not hide the cause.
                send(describe_exception(error))
                raise
            returned = Returned(value=value, time_s=time.monotonic())
        send(returned)
    except BaseException as error:
        # The parent keeps the first outcome of a rank, so the cause stays what is reported.
        send(describe_exception(error))
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)


def _isolate(spec: RankSpec, rank: int) -> None:
    """Tie this process to its parent, set up output, stack dumps, environment and cores."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    # Ctrl-C reaches the whole foreground group; the parent alone answers it, by killing the ranks.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if spec.capture:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        output_fd = os.open(spec.output_path(rank), flags, 0o600)
        os.dup2(output_fd, 1)
        os.dup2(output_fd, 2)
        os.close(output_fd)
    # faulthandler writes inside the signal handler, so it works while native code holds the GIL.
    stacks = spec.stacks_path(rank).open("w")
    faulthandler.enable(file=stacks)
    faulthandler.register(signal.SIGUSR1, file=stacks, all_threads=True)
    os.environ.update(spec.environment)
    if spec.pin and (placement := plan_on_this_host(spec.world_size)).is_pinned:
        pin_process(placement.cores_of_rank[rank])


@contextlib.contextmanager
def _process_group(spec: RankSpec, rank: int) -> Iterator[None]:
    """Join a gloo group over a file store (no ports); leave it in the end."""
    import torch
    import torch.distributed as dist

    torch.set_num_threads(spec.num_threads)
    dist.init_process_group(
        "gloo",
        store=dist.FileStore(str(spec.directory / "store"), spec.world_size),  # type: ignore[attr-defined]
        rank=rank,
        world_size=spec.world_size,
        timeout=timedelta(seconds=spec.comm_timeout_s),
    )
    try:
        yield
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


@contextlib.contextmanager
def _first_arguments(spec: RankSpec, rank: int) -> Iterator[tuple[Any, ...]]:
    """Yield `(world,)`, closed in the end, or `(rank, world_size)`."""
    if not spec.with_world:
        yield (rank, spec.world_size)
        return
    import torch.distributed as dist

    from tokenfabric.world import World

    assert dist.group.WORLD is not None
    with World.from_group(
        dist.group.WORLD, timeout_s=spec.comm_timeout_s, num_threads=spec.num_threads
    ) as world:
        yield (world,)
