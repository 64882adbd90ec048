"""Which cores each rank of a host gets. Pure: the machine is described by the caller.

Reading the machine and pinning a process: cores.py. What a running world has: topology.py.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import groupby, pairwise

from tokenfabric.errors import ConfigError

_Unit = tuple["Core", ...]
"""What is dealt as one: a physical core's usable SMT siblings, or a single core."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Core:
    """A core as the scheduler sees it: with SMT, a physical core is several of them."""

    index: int
    """The kernel's number."""
    node: int = 0
    """NUMA node whose memory is local."""
    socket: int = 0
    physical: int
    """Lowest index of its SMT siblings, usable or not: equal for those that share a pipeline."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PlacementPlan:
    """How the ranks of one host are to lie on its cores."""

    cores_of_rank: tuple[tuple[int, ...], ...]
    """Cores of each rank, ascending: disjoint when pinned, otherwise all cores for all ranks."""
    nodes_of_rank: tuple[tuple[int, ...], ...]
    """NUMA nodes that these cores lie on."""
    num_threads: int
    """Compute threads of each rank, the same for all."""
    reason: str
    """Why the ranks are not pinned; empty when they are."""
    notes: tuple[str, ...]
    """What is poor about the layout, and what to do."""

    @property
    def is_pinned(self) -> bool:
        """Whether each rank is to run on its own cores only."""
        return not self.reason

    def without_pinning(self, reason: str) -> "PlacementPlan":
        """Return the same threads with every core open to every rank."""
        cores = tuple(sorted(set().union(*self.cores_of_rank)))
        nodes = tuple(sorted(set().union(*self.nodes_of_rank)))
        return PlacementPlan(
            cores_of_rank=(cores,) * len(self.cores_of_rank),
            nodes_of_rank=(nodes,) * len(self.nodes_of_rank),
            num_threads=self.num_threads,
            reason=reason,
            notes=(),
        )

    def explain(self) -> str:
        """Return one line a rank, then what is to be said about the layout."""
        lines = [
            f"rank {rank}: cores {format_cores(cores)} on NUMA node {format_cores(nodes)}, "
            f"{self.num_threads} thread(s)"
            for rank, (cores, nodes) in enumerate(
                zip(self.cores_of_rank, self.nodes_of_rank, strict=True)
            )
        ]
        pinning = [] if self.is_pinned else [f"not pinned: {self.reason}"]
        return "\n".join((*lines, *pinning, *self.notes))


def plan_placement(
    num_ranks: int,
    cores: Collection[Core],
    *,
    num_threads: int | None = None,
    quota_cores: float | None = None,
) -> PlacementPlan:
    """Deal the cores of a host to its ranks.

    A rank lies inside one NUMA node or has whole nodes to itself, consecutive ranks lie on the same
    node, and SMT siblings stay together while there is a physical core for each rank. All cores are
    dealt, also when fewer threads are asked for: then threads have room, and jobs that share a host
    do not meet on its first cores. Among such layouts the one with most threads is taken. Nodes are
    cut only for a number of threads that no such layout has.

    Example: 4 ranks, 2 nodes of 8 physical cores: ranks 0 and 1 halve node 0, ranks 2 and 3 node 1,
    4 threads each.

    Args:
        num_ranks: ranks on this host.
        cores: those that the ranks may use.
        num_threads: compute threads of each rank; None: one for each physical core that every rank
            has, within the quota.
        quota_cores: core-seconds a second that control groups grant; None: no limit.

    Raises:
        ConfigError: there are no ranks, threads or cores, or a core appears twice.
    """
    usable = sorted(cores, key=lambda core: (core.socket, core.node, core.physical, core.index))
    _check(num_ranks, usable, num_threads)
    if num_ranks * (num_threads or 1) > len(usable):
        return _unpinned(num_ranks, usable, num_threads, quota_cores)
    shares = _deal(num_ranks, usable, num_threads or 1)
    threads = num_threads or _default_threads(shares, quota_cores)
    return PlacementPlan(
        cores_of_rank=tuple(tuple(sorted(core.index for core in share)) for share in shares),
        nodes_of_rank=tuple(nodes_of(share) for share in shares),
        num_threads=threads,
        reason="",
        notes=tuple(_notes(shares, usable, threads, quota_cores)),
    )


def format_cores(cores: Sequence[int]) -> str:
    """Return ascending numbers (0, 1, 2, 5) as "0-2,5"."""
    spans: list[list[int]] = []
    for core in cores:
        if spans and core == spans[-1][-1] + 1:
            spans[-1] = [spans[-1][0], core]
        else:
            spans.append([core])
    return ",".join("-".join(str(end) for end in span) for span in spans)


def nodes_of(cores: Collection[Core]) -> tuple[int, ...]:
    """Return the NUMA nodes of cores, ascending."""
    return tuple(sorted({core.node for core in cores}))


def _check(num_ranks: int, usable: Sequence[Core], num_threads: int | None) -> None:
    if num_ranks < 1:
        raise ConfigError(f"a placement needs at least one rank, got num_ranks={num_ranks}")
    if num_threads is not None and num_threads < 1:
        raise ConfigError(f"a rank needs at least one thread, got num_threads={num_threads}")
    indices = [core.index for core in usable]
    if not indices or len(set(indices)) < len(indices):
        raise ConfigError(f"a placement needs cores, each of them once, got {indices}")


def _unpinned(
    num_ranks: int, usable: Sequence[Core], num_threads: int | None, quota_cores: float | None
) -> PlacementPlan:
    threads = num_threads or 1
    each = f" of {threads} threads" if threads > 1 else ""
    return PlacementPlan(
        cores_of_rank=(tuple(sorted(core.index for core in usable)),) * num_ranks,
        nodes_of_rank=(nodes_of(usable),) * num_ranks,
        num_threads=threads,
        reason=(
            f"{num_ranks} ranks{each} on {len(usable)} core(s) take turns, which costs scheduler "
            "slices at every barrier: use fewer ranks or threads"
        ),
        notes=tuple(_quota_notes(num_ranks, threads, quota_cores)),
    )


def _default_threads(shares: list[list[Core]], quota_cores: float | None) -> int:
    threads = min(len({core.physical for core in share}) for share in shares)
    if quota_cores is not None:
        threads = min(threads, int(quota_cores) // len(shares))
    return max(1, threads)


def _deal(num_ranks: int, usable: Sequence[Core], min_cores: int) -> list[list[Core]]:
    """Return each rank's cores, at least `min_cores`; there are enough."""
    physical = [tuple(group) for _, group in groupby(usable, key=lambda core: core.physical)]
    single: list[_Unit] = [(core,) for core in usable]
    units = physical if num_ranks <= len(physical) else single
    nodes = [list(g) for _, g in groupby(units, key=lambda u: (u[0].socket, u[0].node))]
    # At last one core after the other, whatever node or physical core it is of: always enough.
    layouts = (_best_by_node(nodes, num_ranks), _split(units, num_ranks), _split(single, num_ranks))
    for layout in layouts:
        shares = [[core for unit in share for core in unit] for share in layout]
        if min(len(share) for share in shares) >= min_cores:
            break
    return shares


def _best_by_node(nodes: list[list[_Unit]], num_ranks: int) -> list[list[_Unit]]:
    """Deal inside nodes, or whole nodes: what gives the smallest share the most units."""
    layouts = [_inside_nodes(nodes, num_ranks)]
    for num_nodes in range(2, len(nodes) // num_ranks + 1):
        # Nodes of a socket are neighbours in the list.
        groups = [
            [unit for node in nodes[first : first + num_nodes] for unit in node]
            for first in range(0, len(nodes) - num_nodes + 1, num_nodes)
        ]
        by_size = sorted(range(len(groups)), key=lambda idx: (-len(groups[idx]), idx))
        layouts.append([groups[idx] for idx in sorted(by_size[:num_ranks])])
    return max(layouts, key=lambda layout: min(len(share) for share in layout))  # the first wins


def _inside_nodes(nodes: list[list[_Unit]], num_ranks: int) -> list[list[_Unit]]:
    # One rank after the other goes where its share is largest: that makes the smallest share as
    # large as it can be.
    counts = [0] * len(nodes)
    for _ in range(num_ranks):
        shares = [Fraction(len(node), count + 1) for node, count in zip(nodes, counts, strict=True)]
        counts[shares.index(max(shares))] += 1
    return [
        share
        for node, count in zip(nodes, counts, strict=True)
        if count
        for share in _split(node, count)
    ]


def _split(units: Sequence[_Unit], num_parts: int) -> list[list[_Unit]]:
    """Cut into consecutive parts, as even as possible, the larger ones first."""
    size, extra = divmod(len(units), num_parts)
    starts = [part * size + min(part, extra) for part in range(num_parts + 1)]
    return [list(units[start:stop]) for start, stop in pairwise(starts)]


def _notes(
    shares: list[list[Core]], usable: Sequence[Core], num_threads: int, quota_cores: float | None
) -> Iterator[str]:
    spread = [rank for rank, share in enumerate(shares) if len(nodes_of(share)) > 1]
    num_nodes = len(nodes_of(usable))
    if spread:
        yield (
            f"rank(s) {format_cores(spread)} lie on several of {num_nodes} NUMA nodes, where "
            f"memory of another node is slower: {num_nodes} ranks, or a multiple, would not"
        )
    dealt = {core.index for share in shares for core in share}
    idle = sorted(core.index for core in usable if core.index not in dealt)
    if idle:
        yield (
            f"cores {format_cores(idle)} get no rank, {len(shares)} rank(s) do not fill "
            f"{num_nodes} NUMA nodes: {num_nodes} ranks, or a multiple, would"
        )
    physical = [{core.physical for core in share} for share in shares]
    if sum(map(len, physical)) > len(set().union(*physical)):
        yield "some ranks share physical cores (SMT): use at most one rank a physical core"
    yield from _quota_notes(len(shares), num_threads, quota_cores)


def _quota_notes(num_ranks: int, num_threads: int, quota_cores: float | None) -> Iterator[str]:
    if quota_cores is not None and num_ranks * num_threads > quota_cores:
        yield (
            f"{num_ranks} rank(s) of {num_threads} thread(s) in a container that grants "
            f"{quota_cores:g} cores' worth of time are stopped for a part of every period: use "
            "fewer, or raise the quota"
        )
