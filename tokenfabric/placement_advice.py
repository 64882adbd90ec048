"""What is poor about how a running rank lies on its host's cores, and what to do. Pure."""

from collections.abc import Sequence

from tokenfabric.placement import Core, format_cores, nodes_of

_HOW = "see docs/placement.md"


def advise(
    rank: int, cores_of_rank: Sequence[Sequence[int]], num_threads: int, cores: Sequence[Core]
) -> tuple[str, ...]:
    """Return a sentence for each fault of a rank's place, none for a good one.

    Args:
        rank: the rank, counted on its host.
        cores_of_rank: cores that each rank of the host may run on.
        num_threads: compute threads of each rank.
        cores: what is known of these cores.
    """
    own = set(cores_of_rank[rank])
    others = [(peer, set(peers)) for peer, peers in enumerate(cores_of_rank) if peer != rank]
    num_cores = len(own.union(*(peers for _, peers in others)))
    num_ranks = len(cores_of_rank)
    found = []
    sharing = [peer for peer, peers in others if peers & own]
    if num_ranks * num_threads > num_cores:
        found.append(
            f"{num_ranks} rank(s) of {num_threads} thread(s) take turns on {num_cores} core(s), "
            "which costs scheduler slices at every barrier: use fewer ranks or threads"
        )
    elif sharing:
        found.append(
            f"this rank may be moved to cores of local rank(s) {format_cores(sharing)}: give each "
            f"rank cores of its own, {_HOW}"
        )
    elif num_threads > len(own):
        found.append(
            f"{num_threads} threads take turns on core(s) {format_cores(sorted(own))}: use fewer "
            f"threads or more cores a rank, {_HOW}"
        )
    own_physical = {core.physical for core in cores if core.index in own}
    neighbors = {core.index for core in cores if core.physical in own_physical} - own
    siblings = [peer for peer, peers in others if peers & neighbors and not peers & own]
    if siblings:
        found.append(
            f"this rank shares physical cores (SMT) with local rank(s) {format_cores(siblings)}: "
            "use at most one rank a physical core"
        )
    nodes = nodes_of([core for core in cores if core.index in own])
    if len(nodes) > 1:
        found.append(
            f"this rank may run on NUMA nodes {format_cores(nodes)}, but its memory lies on the "
            f"one that touched it first: use a rank or more for each node and pin them, {_HOW}"
        )
    return tuple(found)
