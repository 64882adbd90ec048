"""What a world says of itself, for people."""

from typing import TYPE_CHECKING

from tokenfabric import env, native, topology
from tokenfabric.cores import read_cores
from tokenfabric.placement import format_cores, nodes_of
from tokenfabric.placement_advice import advise

if TYPE_CHECKING:
    from tokenfabric.world import World


def describe_world(world: "World", *, partial_bytes: int, staging_bytes: int) -> str:
    """Return a few lines on what was chosen for `world` and why.

    Args:
        world: open or closed.
        partial_bytes, staging_bytes: size of a workspace slot.
    """
    place = world.placement
    usable = ", ".join(native.weave.usable_row_kernels())
    crowd = "more threads than cores" if place.is_oversubscribed else "every thread has a core"
    pinned = "no core is shared" if place.is_pinned else "not pinned: ranks share cores"
    cores = format_cores(place.cores_of_rank[place.rank])
    state = "closed" if world.is_closed else str(world.broken or "open")
    return "\n".join(
        (
            f"world      rank {world.rank} of {world.size} on {world.device}, "
            f"group {world.group_name!r}, {state}",
            *_transport(world.layout),
            *(f"GPUs       {line}" for line in (world.cuda.explain() if world.cuda else ())),
            f"kernels    {world.row_kernels.name} (TOKENFABRIC_ISA={env.isa()}; this CPU runs "
            f"{usable})",
            f"threads    {world.num_threads} a rank, cores {cores} ({pinned}; {crowd})",
            *_memory_and_advice(place),
            f"waits      {place.spin_count} polls, then a futex; deadline {world.timeout_s:g} s",
            f"workspace  2 x ({partial_bytes >> 20} MiB partial sums + 2 x "
            f"{staging_bytes >> 20} MiB staging) a rank",
        )
    )


def _memory_and_advice(place: topology.HostPlacement) -> tuple[str, ...]:
    """Return where this rank's memory lies, and what is poor about that."""
    cores = read_cores(indices=set().union(*place.cores_of_rank))
    own = [core for core in cores if core.index in place.cores_of_rank[place.rank]]
    advice = advise(place.rank, place.cores_of_rank, place.num_threads, cores)
    return (
        f"memory     of NUMA node {format_cores(nodes_of(own))} "
        f"(the ranks of this host: {format_cores(nodes_of(cores))})",
        *(f"advice     {sentence}" for sentence in advice),
    )


def _transport(layout: topology.HostLayout) -> tuple[str, ...]:
    if layout.size == 1:
        return ("transport  none, a world of one rank",)
    if layout.num_hosts == 1:
        return (f"transport  shared memory (memfd), all {layout.size} ranks are on this host",)
    inside = (
        f"shared memory (memfd) among ranks {list(layout.host_ranks)}"
        if layout.local_size > 1
        else "no shared memory, one rank a host"
    )
    rail = [rank for rank in layout.rail_ranks if rank != layout.rank]
    return (
        f"hosts      {layout.num_hosts} of {layout.local_size} rank(s); this is local rank "
        f"{layout.local_rank} of host {layout.host_idx}",
        f"transport  {inside}; gloo to rank(s) {rail} for sums and finished rows",
        f"watch      TCP to the ranks of this host and to {rail}: who goes is known to all at once",
    )
