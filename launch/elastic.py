"""A gang of ranks under torch's elastic agent, without restarts: the first failure ends it.

Rank 0 writes to this process's stdout and stderr. What other ranks write is kept in files until the
job ends, for the case that one dies without a word.
"""

import logging
import multiprocessing
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from torch.distributed.elastic.multiprocessing import LogsDest, LogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from launch.failure import (
    Failure,
    FailureKind,
    JobFailedError,
    describe,
    read_failure,
    root_cause,
    write_failure,
)
from launch.job import JobSpec
from launch.rank import run_rank
from launch.rendezvous import BACKEND, FAILED, GangRendezvous, register
from launch.store import StoreLostError, join_store, wait_for_ever
from tokenfabric.cores import pin_process
from tokenfabric.env import RankInfo, rank_info_from_env
from tokenfabric.errors import PeerLostError, TopologyError
from tokenfabric.placement import PlacementPlan

_TAIL_LINES = 20
_MONITOR_INTERVAL_S = 0.05
_JOINED_WITHIN_S = 30.0
_CAUSE_SEEN_S = 20 * _MONITOR_INTERVAL_S


def run_elastic(
    spec: JobSpec,
    placement: PlacementPlan,
    folder: Path,
    rendezvous: GangRendezvous,
    environment: Mapping[str, str],
) -> object:
    """Start this host's ranks, wait for them and return rank 0's result, None on other hosts.

    Args:
        spec: the job.
        placement: cores and threads of this host's ranks, one plan for all of them.
        folder: an empty folder for the ranks' files, removed by the caller.
        rendezvous: where this host's agent meets those of others.
        environment: variables of the ranks beside those that the agent sets.

    Raises:
        JobFailedError: with the first failing rank's own error, on whichever host it was.
        KeyboardInterrupt, SystemExit: this process was told to stop; the ranks are stopped too.
    """
    files = RankFiles(folder, environment)
    register()
    config = LaunchConfig(
        min_nodes=rendezvous.nodes,
        max_nodes=rendezvous.nodes,
        nproc_per_node=spec.ranks_per_node,
        run_id=rendezvous.get_run_id(),
        rdzv_backend=BACKEND,
        rdzv_endpoint=rendezvous.get_run_id(),
        rdzv_configs={"handler": rendezvous},
        local_addr=rendezvous.host,
        max_restarts=0,
        monitor_interval=_MONITOR_INTERVAL_S,
        start_method="forkserver",
        logs_specs=files,
    )
    with _quiet_loggers(), _signal_handlers_kept():
        try:
            # The spec travels as an object: the agent expands "$" in arguments that are strings.
            results = elastic_launch(config, _rank_main)(spec, placement, files)
        except ChildFailedError as error:
            found = _cause(error, files, spec, rendezvous)
            raise JobFailedError(rendezvous.settle(found)) from None
        except SignalException as error:
            rendezvous.settle(_stopped(error, rendezvous))
            if error.sigval == signal.SIGINT:
                raise KeyboardInterrupt from None
            raise SystemExit(128 + error.sigval) from None
    return results.get(0)


class RankFiles(LogsSpecs):
    """Where the ranks of one host write: one folder a rank, by local rank."""

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        super().__init__(log_dir=str(folder))
        self.folder = folder
        self._environment = dict(environment)

    @property
    def root_log_dir(self) -> str:
        """The folder, for the agent's log."""
        return str(self.folder)

    def failure(self, rank: int) -> Path:
        """Return where a rank leaves its `Failure`."""
        return self.folder / str(rank) / "failure.json"

    def stderr(self, rank: int) -> Path:
        """Return where a rank other than the job's rank 0 writes its stderr."""
        return self.folder / str(rank) / "stderr.log"

    def reify(self, envs: dict[int, dict[str, str]]) -> LogsDest:
        """Tell the agent which rank writes where: "" is this process's own stream."""
        destination = LogsDest()
        for rank, environment in envs.items():
            folder = self.folder / str(rank)
            folder.mkdir()
            destination.error_files[rank] = str(folder / "error.json")
            environment.update(self._environment)
            environment["TORCHELASTIC_ERROR_FILE"] = destination.error_files[rank]
            is_first = environment["RANK"] == "0"
            destination.stdouts[rank] = "" if is_first else str(folder / "stdout.log")
            destination.stderrs[rank] = "" if is_first else str(self.stderr(rank))
        return destination


def _rank_main(spec: JobSpec, placement: PlacementPlan, files: RankFiles) -> object:
    # Inherited from the fork server as ignored. A rank has nothing to clean up: it ends at once.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    threading.Thread(target=_end_with_launcher, daemon=True).start()
    info = rank_info_from_env()
    assert info is not None, "the agent sets the six variables"
    failure_file = files.failure(info.local_rank)
    if spec.nodes > 1:
        threading.Thread(target=_end_with_gang, args=(info, failure_file), daemon=True).start()
    try:
        # Before anything large is allocated: memory lies where it is first touched.
        if placement.is_pinned:
            pin_process(placement.cores_of_rank[info.local_rank])
        return run_rank(spec, placement.num_threads, _remark(spec, placement))
    except (Exception, SystemExit) as error:
        failure = describe(error, info.rank)
        write_failure(failure, failure_file)
        if failure.kind is FailureKind.CONSEQUENCE:
            # The agent looks at one dead process only. It shall be the one that died first, and
            # when it has seen that, it ends this one.
            time.sleep(_CAUSE_SEEN_S)
        raise


def _end_with_gang(info: RankInfo, failure_file: Path) -> None:
    """Die when a rank of another node has failed, wherever this one is in its computation."""
    try:
        store = join_store(info.master_addr, info.master_port, _JOINED_WITHIN_S)
        wait_for_ever(store, FAILED)
        message = "another node has failed"
    except (StoreLostError, TopologyError):
        message = "the launcher on node 0 is gone"
    if not failure_file.exists():
        error = PeerLostError(message, rank=info.rank)
        write_failure(describe(error, info.rank), failure_file)
    os._exit(1)


def _remark(spec: JobSpec, placement: PlacementPlan) -> str:
    """Return what is poor about the layout and was not asked for, in sentences."""
    is_as_asked = placement.is_pinned or spec.pin is False
    pinning = () if is_as_asked else (f"not pinned: {placement.reason}",)
    return "\n".join((*pinning, *placement.notes))


def _end_with_launcher() -> None:
    """Die when the launcher dies: a rank's parent is the fork server, which lives on then."""
    launcher = multiprocessing.parent_process()
    assert launcher is not None, "ranks are started with multiprocessing"
    launcher.join()
    os._exit(1)


def _cause(
    error: ChildFailedError, files: RankFiles, spec: JobSpec, rendezvous: GangRendezvous
) -> Failure:
    """Return the failure that ended this host's ranks.

    The agent names one process that failed. The ranks' own files tell more; who was killed has left
    none.
    """
    first = rendezvous.node_rank * spec.ranks_per_node
    left = [read_failure(files.failure(local)) for local in range(spec.ranks_per_node)]
    found = [failure for failure in left if failure is not None]
    found += [
        _silent_death(rank, process.exitcode, files.stderr(rank - first))
        for rank, process in error.failures.items()
        if left[rank - first] is None
    ]
    return replace(root_cause(found), host=_host(rendezvous))


def _stopped(error: SignalException, rendezvous: GangRendezvous) -> Failure:
    """Return what the other nodes shall know of a launcher that was told to stop."""
    return Failure(
        kind=FailureKind.DEFECT,
        rank=None,
        error=signal.Signals(error.sigval).name,
        message="the launcher was told to stop",
        host=_host(rendezvous),
    )


def _host(rendezvous: GangRendezvous) -> str | None:
    if rendezvous.nodes == 1:
        return None
    return f"node {rendezvous.node_rank} ({socket.gethostname()})"


def _silent_death(rank: int, exit_code: int, written: Path) -> Failure:
    lines = written.read_text(errors="replace").splitlines() if written.is_file() else []
    if exit_code >= 0:
        name, message = "process ended", f"exit code {exit_code} without an exception"
    else:
        is_named = -exit_code in set(signal.Signals)
        name = signal.Signals(-exit_code).name if is_named else f"signal {-exit_code}"
        message = "the process was killed"
        if -exit_code == signal.SIGKILL:
            message += " (the kernel does this when memory runs out)"
    return Failure(
        kind=FailureKind.DEFECT,
        rank=rank,
        error=name,
        message=message,
        details="\n".join(lines[-_TAIL_LINES:]),
    )


@contextmanager
def _quiet_loggers() -> Iterator[None]:
    """Keep torch's launcher from logging: every failure is told once, by the caller."""
    # Handlers and levels sit anywhere below "torch": its whole tree is off for the time.
    loggers = [
        logger
        for name, logger in logging.root.manager.loggerDict.items()
        if name.startswith("torch.") and isinstance(logger, logging.Logger)
    ]
    before = [logger.disabled for logger in loggers]
    for logger in loggers:
        logger.disabled = True
    try:
        yield
    finally:
        for logger, disabled in zip(loggers, before, strict=True):
            logger.disabled = disabled


@contextmanager
def _signal_handlers_kept() -> Iterator[None]:
    """Restore the signal handlers that the agent replaces."""
    if threading.current_thread() is not threading.main_thread():
        yield  # the agent replaces none
        return
    signals = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
    before = {number: signal.getsignal(number) for number in signals}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
