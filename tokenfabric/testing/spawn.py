"""Start ranks as real processes, without ports and without torchrun, and never leave one behind.

`run_ranks` is for tests of behaviour: all ranks return, or the first failure ends the gang and is
raised with its traceback. `spawn_plain` is for fault tests: the caller may kill or stop ranks, and
every survivor lives on until it returns, raises or is killed. The gang is in rank_group.py.

The ranks come from a fork server with torch already imported: 0.1-0.2 s for 4 ranks once it runs.
"""

import contextlib
import pickle
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tokenfabric.testing.rank_group import RankGroup, RanksFailedError, RanksTimeoutError
from tokenfabric.testing.rank_process import Raised, RankSpec, Returned

__all__ = [
    "Raised",
    "RankGroup",
    "RanksFailedError",
    "RanksTimeoutError",
    "Returned",
    "run_ranks",
    "spawn_plain",
]


def _spec(
    fn: Callable[..., Any],
    args: tuple[Any, ...],
    world_size: int,
    timeout_s: float,
    comm_timeout_s: float | None,
    environment: Mapping[str, str] | None,
    **options: Any,
) -> RankSpec:
    return RankSpec(
        payload=pickle.dumps((fn, args)),
        world_size=world_size,
        directory=Path(tempfile.mkdtemp(prefix="rank-group-")),
        # Half of the gang's deadline: a hang in a collective then shows as its own error.
        comm_timeout_s=timeout_s / 2 if comm_timeout_s is None else comm_timeout_s,
        environment=environment or {},
        **options,
    )


def run_ranks(
    fn: Callable[..., Any],
    world_size: int,
    *args: Any,
    timeout_s: float = 60.0,
    with_world: bool = True,
    comm_timeout_s: float | None = None,
    num_threads: int = 1,
    environment: Mapping[str, str] | None = None,
    capture: bool = True,
    pin: bool = False,
) -> list[Any]:
    """Run `fn(world, *args)` on `world_size` fresh processes and return what each rank returned.

    Args:
        fn: a top-level function (it is pickled by name), called as `fn(world, *args)`, or as
            `fn(rank, world_size, *args)` when `with_world` is False; torch.distributed is
            initialised with gloo in both cases.
        world_size: number of ranks, each a process.
        args: picklable; given to every rank.
        timeout_s: all ranks are killed when they have not finished after this time.
        with_world: make a `tokenfabric.World` of the process group.
        comm_timeout_s: deadline of the process group and the world; default half of `timeout_s`.
        num_threads: torch's and the world's threads in each rank.
        environment: variables set in every rank before `fn` is imported.
        capture: keep the ranks' output for the error text instead of showing it.
        pin: deal the cores to the ranks, so that no two share one; no effect with fewer cores than
            ranks.

    Raises:
        RanksFailedError: a rank raised or died; the others were killed. Its text is the traceback.
        RanksTimeoutError: the deadline passed; its text holds the stacks of the ranks.
    """
    spec = _spec(
        fn, args, world_size, timeout_s, comm_timeout_s, environment,
        with_world=with_world, pass_report=False, num_threads=num_threads, capture=capture, pin=pin,
    )  # fmt: skip
    with RankGroup(spec, timeout_s=timeout_s) as ranks:
        ranks.join(stop_at_failure=True)
        return ranks.check()


@contextlib.contextmanager
def spawn_plain(
    fn: Callable[..., Any],
    world_size: int,
    *args: Any,
    timeout_s: float = 60.0,
    with_world: bool = True,
    comm_timeout_s: float | None = None,
    num_threads: int = 1,
    environment: Mapping[str, str] | None = None,
) -> Iterator[RankGroup]:
    """Start ranks that nobody ends at the first failure; yield their RankGroup.

    `fn` is called as `fn(world, report, *args)`, or `fn(rank, world_size, report, *args)` without a
    world; `report(marker)` tells the parent, which may wait for it, how far this rank is. Arguments
    as in `run_ranks`. All ranks are killed and reaped when the context ends.
    """
    spec = _spec(
        fn, args, world_size, timeout_s, comm_timeout_s, environment,
        with_world=with_world, pass_report=True, num_threads=num_threads, capture=True, pin=False,
    )  # fmt: skip
    with RankGroup(spec, timeout_s=timeout_s) as ranks:
        yield ranks
