"""How long a plan takes: counted bytes and operations against a topology's rates. Pure.

    T(rank) = sum over steps of max(computation, transfers of the step) + merges

and T is that of the slowest rank. The split of the local work, the first blocks and the last
results are steps like any other. Where ranks share memory the sender's core does the copying, and
the two add up.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from tokenring.blocks import RankPlan, Step, Transfer
from tokenring.problem import RingProblem
from tokenring.topology import Topology


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """Predicted times of a call in seconds, and counted bytes; each of the rank with the most."""

    time_s: float
    compute_s: float
    exposed_s: float
    """Time in transfers that nothing hides."""
    merge_s: float
    bytes_sent: int
    bytes_received: int


def estimate(problem: RingProblem, plans: Sequence[RankPlan], topology: Topology) -> Estimate:
    """Return the estimate over the given ranks' parts of a plan."""
    found = [_of_rank(problem, plan, topology) for plan in plans]
    return Estimate(
        time_s=max(e.time_s for e in found),
        compute_s=max(e.compute_s for e in found),
        exposed_s=max(e.exposed_s for e in found),
        merge_s=max(e.merge_s for e in found),
        bytes_sent=max(e.bytes_sent for e in found),
        bytes_received=max(e.bytes_received for e in found),
    )


def step_times(step: Step, topology: Topology, size: int) -> tuple[float, float]:
    """Return how long a rank computes in a step, and how long the step's transfers take."""
    compute_s = sum(
        compute.flops / topology.flops_per_s + topology.kernel_s for compute in step.computes
    )
    sends = step.sends
    receives = [arrival.transfer for arrival in step.arrivals]
    if not sends and not receives:
        return compute_s, 0.0
    return compute_s, topology.latency_s + _busiest_s(sends, receives, topology, size)


def num_hops(transfer: Transfer, size: int) -> tuple[int, int]:
    """Return how many links (clockwise, counterclockwise) a transfer crosses on a physical ring."""
    clockwise = (transfer.dst - transfer.src) % size
    if clockwise * 2 > size or (clockwise * 2 == size and transfer.direction == "counterclockwise"):
        return 0, size - clockwise
    return clockwise, 0


def _busiest_s(
    sends: Sequence[Transfer], receives: Sequence[Transfer], topology: Topology, size: int
) -> float:
    if topology.kind == "shared_memory":
        return sum(t.num_bytes for t in sends) / topology.bandwidth
    if topology.kind == "ring":
        # By symmetry each link carries, in each direction, what one rank's transfers cross.
        hops = [(t.num_bytes, num_hops(t, size)) for t in sends]
        both = (sum(b * h[0] for b, h in hops), sum(b * h[1] for b, h in hops))
        return max(both) / topology.bandwidth
    loads: dict[tuple[str, int], int] = defaultdict(int)
    for name, transfers in (("out", sends), ("in", receives)):
        for t in transfers:
            peer = t.dst if name == "out" else t.src
            me = t.src if name == "out" else t.dst
            if topology.kind == "mesh":
                loads[name, peer] += t.num_bytes
            elif topology.is_same_host(me, peer):
                loads[name, -1] += t.num_bytes
            else:
                loads[name + " network", -1] += t.num_bytes
    return max(
        load / (topology.network_bandwidth if "network" in name else topology.bandwidth)
        for (name, _), load in loads.items()
    )


def _of_rank(problem: RingProblem, plan: RankPlan, topology: Topology) -> Estimate:
    time_s = compute_total_s = exposed_s = 0.0
    for step in plan.steps:
        compute_s, transfer_s = step_times(step, topology, problem.world_size)
        hidden_s = 0.0 if topology.kind == "shared_memory" else min(compute_s, transfer_s)
        time_s += compute_s + transfer_s - hidden_s
        compute_total_s += compute_s
        exposed_s += transfer_s - hidden_s
    merge_s = _merge_bytes(problem, plan) / topology.merge_bandwidth
    return Estimate(
        time_s=time_s + merge_s,
        compute_s=compute_total_s,
        exposed_s=exposed_s,
        merge_s=merge_s,
        bytes_sent=plan.bytes_sent,
        bytes_received=sum(arrival.transfer.num_bytes for arrival in plan.arrivals),
    )


def _merge_bytes(problem: RingProblem, plan: RankPlan) -> int:
    """Return the bytes that merges read and write, where they do more than name a result."""
    total = 0
    for merge in plan.merges:
        if merge.is_copy and len(merge.segments) == 1:
            continue
        for rows, heads, inputs in merge.segments:
            total += problem.num_bytes(merge.output.kind, rows.size, heads.size) * (len(inputs) + 1)
    return total
