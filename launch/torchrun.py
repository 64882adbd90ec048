"""Run a job on this host's ranks: in place below torchrun, otherwise on ranks started here.

Below torchrun (its six variables are set) this process already is a rank; a job of one rank that
is not to be started again needs no other process either. Otherwise the ranks are forked from a
server process that has torch and the recipe imported: the imports are paid once, beside this
process's own, instead of once a rank (2 ranks on 2 cores are ready after 5 s instead of 8-10 s, 4
ranks after 5 s instead of 15 s).
"""

import logging
import math
import multiprocessing
import os
import signal
import threading
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from multiprocessing import forkserver
from typing import TYPE_CHECKING

from launch.failure import FailureKind, JobFailedError, describe
from launch.interface import interface_of
from launch.job import JobSpec, describe_mesh
from launch.job_folder import job_folder
from launch.nodes import NodePlace
from tokenfabric.cores import plan_on_this_host
from tokenfabric.env import rank_info_from_env
from tokenfabric.errors import ConfigError, TopologyError
from tokenfabric.log import LOGGER_NAME
from tokenfabric.placement import PlacementPlan

if TYPE_CHECKING:
    from launch.meeting import Meeting

DEFAULT_RANKS = 2

_LOOPBACK = "127.0.0.1"

# Above any activation of one layer, below what would matter if it were never given back.
_MALLOC_KEEP_BYTES = 1 << 30

# OpenMP's own ways to bind threads. They lay one process out on the whole machine: below a pinned
# rank they would move its threads back to the first cores, those of every other rank too.
_OPENMP_BINDING = ("OMP_PROC_BIND", "OMP_PLACES", "GOMP_CPU_AFFINITY", "KMP_AFFINITY")


def choose_ranks(
    asked: int | None, default: int = DEFAULT_RANKS, mesh: Mapping[str, int] | None = None
) -> int:
    """Return the number of ranks: torchrun's below torchrun, else what was asked, else the default.

    Args:
        asked: by --ranks; None: nobody did.
        default: number of ranks otherwise.
        mesh: axes that ranks were asked for instead, see `JobSpec.mesh`.

    Raises:
        ConfigError: torchrun started another number than was asked for.
    """
    words = f"--ranks {asked}"
    if mesh:
        asked = math.prod(mesh.values())
        words = f"{describe_mesh(mesh)} ({asked} ranks)"
    info = rank_info_from_env()
    if info is None:
        return default if asked is None else asked
    if asked not in (None, info.world_size):
        raise ConfigError(
            f"{words} was asked for, but torchrun started {info.world_size}: drop it, or use "
            f"--nproc-per-node {asked}"
        )
    return info.world_size


def is_quiet_rank() -> bool:
    """Return whether torchrun made this process another rank than rank 0."""
    info = rank_info_from_env()
    return info is not None and info.rank != 0


def run_job(spec: JobSpec, place: NodePlace | None = None) -> object:
    """Run a job to its end and return what its recipe returned on rank 0.

    Args:
        spec: the job.
        place: of this host among several nodes, each of which calls this; they return None but for
            node 0.

    Raises:
        ConfigError: torchrun's ranks cannot be pinned or started again here, it started several
            nodes already, the job is one for Ray, or OMP_NUM_THREADS is no number.
        TopologyError: the ranks were to be pinned and cannot be, or the nodes do not meet.
        JobFailedError: with the first failing rank's own error; no rank is left running.
    """
    if spec.environment or (spec.nodes > 1) != (place is not None):
        raise ConfigError(
            f"nodes={spec.nodes} without a place among them, or environment="
            f"{dict(spec.environment)}: these are for Ray"
        )
    info = rank_info_from_env()
    if info is not None and place is not None:
        raise ConfigError(
            f"--nodes {spec.nodes} was asked for, but torchrun started these ranks, and knows the "
            "nodes: drop --nodes, --node-rank and --rendezvous"
        )
    if info is None and (spec.ranks > 1 or spec.max_restarts):
        return _run_until_done(spec, place)
    if info is not None and spec.pin:
        raise ConfigError(
            "--pin was asked for, but torchrun started these ranks, and where they run is its "
            "user's choice: pin them with numactl or taskset, see docs/placement.md"
        )
    if info is not None and spec.max_restarts:
        raise ConfigError(
            f"--max-restarts {spec.max_restarts} was asked for, but torchrun started these ranks "
            "and starts them again: give it --max-restarts"
        )
    from torch.distributed.elastic.multiprocessing.errors import record

    from launch.rank import run_rank

    rank = None if info is None else info.rank
    try:
        # torchrun shows what `record` leaves for it, beside what this process says itself.
        return record(run_rank)(spec, spec.num_threads)
    except Exception as error:
        raise JobFailedError(describe(error, rank)) from error


def rank_environment(num_threads: int) -> dict[str, str]:
    """Return the variables that started ranks get where the user has not set them."""
    return {
        "OMP_NUM_THREADS": str(num_threads),
        # By default glibc gives every large temporary back to the kernel and page-faults it in
        # again for the next layer. These are read when a process starts: only children can have
        # them.
        "MALLOC_MMAP_THRESHOLD_": str(_MALLOC_KEEP_BYTES),
        "MALLOC_TRIM_THRESHOLD_": str(_MALLOC_KEEP_BYTES),
        # The launcher has resolved the model: a rank that asks the network could hang there.
        "HF_HUB_OFFLINE": "1",
    }


def _run_until_done(spec: JobSpec, place: NodePlace | None) -> object:
    # Before the nodes wait for each other.
    placement = _choose_placement(spec)
    meeting = None
    if place is not None:
        from launch.meeting import Meeting

        meeting = Meeting(place, spec)
    for restarts_left in range(spec.max_restarts, -1, -1):
        try:
            return _run_on_new_ranks(spec, placement, meeting, spec.max_restarts - restarts_left)
        except JobFailedError as error:
            if error.failure.kind is FailureKind.USER or restarts_left == 0:
                raise
            logging.getLogger(LOGGER_NAME).warning(
                "%s; starting all ranks again, %d more time(s) at most",
                error.failure.line, restarts_left,
            )  # fmt: skip
    raise AssertionError("the last attempt returns or raises")


def _run_on_new_ranks(
    spec: JobSpec, placement: PlacementPlan, meeting: "Meeting | None", attempt: int
) -> object:
    with (
        environment_of_children(
            rank_environment(placement.num_threads),
            dropped=_OPENMP_BINDING if placement.is_pinned else (),
        ),
        job_folder() as folder,
    ):
        # The server imports beside this process: start it before importing torch here.
        _start_server(["launch.elastic", "launch.rank", spec.module])
        from launch.elastic import run_elastic
        from launch.rendezvous import GangRendezvous

        if meeting is None:
            rendezvous, address = GangRendezvous.alone(), _LOOPBACK
        else:
            rendezvous, address = meeting.attempt(attempt), meeting.address()
        return run_elastic(spec, placement, folder, rendezvous, _interface_environment(address))


def _interface_environment(address: str) -> dict[str, str]:
    """Return the variable that keeps gloo on the interface with an address, unless a user set it.

    By itself gloo takes the interface that the host's name leads to.
    """
    name = interface_of(address)
    is_set = "GLOO_SOCKET_IFNAME" in os.environ
    return {} if is_set or name is None else {"GLOO_SOCKET_IFNAME": name}


def _choose_placement(spec: JobSpec) -> PlacementPlan:
    # Handed over as a number too: a server that is running already has read another setting.
    setting = os.environ.get("OMP_NUM_THREADS")
    num_threads = spec.num_threads
    if num_threads is None and setting is not None:
        num_threads = _number_of_threads(setting)
    placement = plan_on_this_host(spec.ranks_per_node, num_threads)
    if spec.pin is False:
        return placement.without_pinning("--no-pin was asked for")
    if spec.pin and not placement.is_pinned:
        raise TopologyError(f"--pin was asked for, but {placement.reason}")
    return placement


def _start_server(modules: list[str]) -> None:
    multiprocessing.set_forkserver_preload(modules)
    if threading.current_thread() is not threading.main_thread():
        forkserver.ensure_running()
        return
    # Control-C goes to every process of a terminal. The server inherits that it is ignored; else it
    # would end with a traceback in the middle of its imports.
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        forkserver.ensure_running()
    finally:
        signal.signal(signal.SIGINT, before)


def _number_of_threads(setting: str) -> int:
    """Return what a user's OMP_NUM_THREADS means for torch: "4,2" is 4, and 2 in nested regions."""
    first = setting.partition(",")[0].strip()
    if not first.isdecimal() or int(first) < 1:
        raise ConfigError(f"OMP_NUM_THREADS must be a number above 0, got {setting!r}")
    return int(first)


@contextmanager
def environment_of_children(
    defaults: Mapping[str, str], dropped: Collection[str] = ()
) -> Iterator[None]:
    """For processes started meanwhile, set what the user has not set and drop what must not be."""
    before = dict(os.environ)
    added = {name: value for name, value in defaults.items() if name not in before}
    taken = {name: before[name] for name in dropped if name in before}
    os.environ.update(added)
    for name in taken:
        del os.environ[name]
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)
        os.environ.update(taken)
