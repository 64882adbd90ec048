"""The cores of this host, as the kernel's files tell them, and pinning this process to some.

Who gets which is decided in placement.py.
"""

import os
from collections.abc import Collection
from pathlib import Path

from tokenfabric.errors import ConfigError, TopologyError
from tokenfabric.placement import Core, PlacementPlan, format_cores, plan_placement

_ROOT = Path("/")


def read_cores(root: Path = _ROOT, indices: Collection[int] | None = None) -> tuple[Core, ...]:
    """Return what /sys says about cores, ascending.

    Args:
        root: where the file system starts.
        indices: which cores; None: those that this process may be scheduled on.

    A core of which nothing is said (no /sys, no NUMA) is a physical core on node 0 of socket 0.
    """
    system = root / "sys/devices/system"
    node_of = {
        core: int(folder.name.removeprefix("node"))
        for folder in (system / "node").glob("node[0-9]*")
        for core in _listed(folder / "cpulist")
    }
    chosen = os.sched_getaffinity(0) if indices is None else indices
    cores = []
    for index in sorted(chosen):
        topology = system / f"cpu/cpu{index}/topology"
        package = topology / "physical_package_id"
        siblings = _listed(topology / "thread_siblings_list")
        socket = int(package.read_text()) if package.is_file() else 0
        cores.append(
            Core(
                index=index,
                node=node_of.get(index, 0),
                socket=max(0, socket),  # -1 where firmware does not say
                physical=min(siblings, default=index),
            )
        )
    return tuple(cores)


def parse_cores(text: str) -> tuple[int, ...]:
    """Return "0-2,5" as (0, 1, 2, 5), as the kernel writes lists of cores."""
    cores: list[int] = []
    for span in text.strip().split(","):
        first, _, last = span.partition("-")
        if first:
            cores += range(int(first), int(last or first) + 1)
    return tuple(cores)


def read_quota(root: Path = _ROOT) -> float | None:
    """Return the cores' worth of time that control groups grant this process, None: no limit."""
    quotas = []
    for line in (root / "proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            group = root / "sys/fs/cgroup"
            # A limit of any group above counts too.
            folders = [group, *(group / part for part in _prefixes(path))]
            quotas += [_quota(folder / "cpu.max") for folder in folders]
        elif "cpu" in controllers.split(","):
            quotas.append(_old_quota(root / "sys/fs/cgroup" / controllers))
    return min((quota for quota in quotas if quota is not None), default=None)


def plan_on_this_host(num_ranks: int, num_threads: int | None = None) -> PlacementPlan:
    """Return `plan_placement` for the cores and the quota of this process.

    Raises:
        ConfigError: there are no ranks or threads.
    """
    return plan_placement(
        num_ranks, read_cores(), num_threads=num_threads, quota_cores=read_quota()
    )


def pin_process(cores: Collection[int]) -> None:
    """Let every thread of this process, and those that they start, run on `cores` only.

    Memory follows: the kernel takes a page from the node of the thread that first touches it.
    Pages that the process has touched already stay where they are.

    Raises:
        ConfigError: `cores` is empty.
        TopologyError: the process may not use one of the cores.
    """
    wanted = set(cores)
    if not wanted:
        raise ConfigError("a process needs at least one core to run on")
    # A thread that is not pinned yet may start another one: until a pass has found none.
    while found := [thread for thread in _threads() if _cores_of(thread) not in (None, wanted)]:
        for thread in found:
            _pin_thread(thread, wanted)


def _threads() -> list[int]:
    return [int(name) for name in os.listdir("/proc/self/task")]


def _cores_of(thread: int) -> set[int] | None:
    try:
        return os.sched_getaffinity(thread)
    except ProcessLookupError:
        return None  # it has just ended


def _pin_thread(thread: int, cores: set[int]) -> None:
    try:
        os.sched_setaffinity(thread, cores)
    except ProcessLookupError:
        return  # it has just ended
    except OSError as error:
        raise TopologyError(
            f"cannot run on cores {format_cores(sorted(cores))}: {error.strerror}"
        ) from None
    # The kernel drops what is offline or outside the process's cpuset without a word.
    if (granted := _cores_of(thread)) not in (None, cores):
        raise TopologyError(
            f"of cores {format_cores(sorted(cores))} this process may use "
            f"{format_cores(sorted(granted or ()))} only: the others are offline or outside its "
            "cpuset"
        )


def _listed(file: Path) -> tuple[int, ...]:
    return parse_cores(file.read_text()) if file.is_file() else ()


def _prefixes(path: str) -> list[str]:
    parts = [part for part in path.split("/") if part]
    return ["/".join(parts[:count]) for count in range(1, len(parts) + 1)]


def _quota(file: Path) -> float | None:
    if not file.is_file():
        return None
    granted, period = file.read_text().split()
    return None if granted == "max" else int(granted) / int(period)


def _old_quota(folder: Path) -> float | None:
    granted, period = folder / "cpu.cfs_quota_us", folder / "cpu.cfs_period_us"
    if not granted.is_file() or int(granted.read_text()) < 0:
        return None
    return int(granted.read_text()) / int(period.read_text())
