"""Which strategy to take: each is planned for some ranks and the fastest estimate wins. Pure."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from tokenring.cost import Estimate, estimate
from tokenring.movement import STRATEGIES, Movement, make_movement
from tokenring.own import OwnRows
from tokenring.problem import RingProblem
from tokenring.rank_plan import build_rank_plans
from tokenring.topology import Topology

_MAX_RANKS_PLANNED = 4
"""Up to so many ranks all are planned; of more, four: the first, the last and two in between."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """A strategy with what it would cost."""

    movement: Movement
    estimate: Estimate

    @property
    def label(self) -> str:
        """The strategy's name, with its grid and what is unusual about its local work."""
        movement = self.movement
        grid = f" {movement.u}x{movement.a}x{movement.b}" if movement.name == "grid" else ""
        is_usual = movement.local != "fused" or movement.name not in ("q_push", "kv_push", "grid")
        return movement.name + grid + ("" if is_usual or movement.u > 1 else " fused")


@lru_cache(maxsize=256)
def rank_candidates(problem: RingProblem, topology: Topology) -> tuple[Candidate, ...]:
    """Return all candidates, the fastest first; of equals, the one named first in STRATEGIES.

    All ranks see the same, since everything follows from the arguments.
    """
    size = problem.world_size
    ranks = (
        sorted({0, size // 4, size // 2, size - 1}) if size > _MAX_RANKS_PLANNED else range(size)
    )
    own = OwnRows(problem)
    found = []
    for movement in _movements(problem, topology):
        plans = build_rank_plans(problem, movement, ranks, own)
        found.append(Candidate(movement=movement, estimate=estimate(problem, plans, topology)))
    return tuple(sorted(found, key=lambda candidate: candidate.estimate.time_s))


def _movements(problem: RingProblem, topology: Topology) -> Iterator[Movement]:
    if problem.world_size == 1:
        yield make_movement("kv_push", problem)
        return
    for name in STRATEGIES:
        if name == "grid":
            grid = best_grid(problem, topology)
            if grid is not None:
                yield make_movement("grid", problem, grid=grid)
        elif name != "ulysses" or problem.world_size <= problem.heads_q:
            yield make_movement(name, problem)
            if name == "q_push":  # kv_push fused would be allgather
                yield make_movement(name, problem, local="fused")


def best_grid(problem: RingProblem, topology: Topology) -> tuple[int, int, int] | None:
    """Return the grid with the least transfer time by closed formulas, None if N has no factors.

    Per rank: (u-1)/u (Q + KV + O) + (a-1) (Q + O) inside groups of u*a consecutive ranks, and
    (b-1) KV between them, with mean sizes and without what a mask saves. Grids with only one factor
    are other strategies by name and left out.
    """
    size = problem.world_size
    rows_q = -(-problem.q_layout.num_tokens // size)
    rows_kv = -(-problem.kv_layout.num_tokens // size)
    q = problem.num_bytes(problem.q_kind, rows_q, problem.heads_q)
    q += problem.num_bytes(problem.out_kind, rows_q, problem.heads_q)
    kv = problem.num_bytes("kv", rows_kv, problem.heads_kv)
    if problem.direction == "backward":
        kv += problem.num_bytes("dkv", rows_kv, problem.heads_kv)
    best: tuple[float, tuple[int, int, int]] | None = None
    for u in range(1, size + 1):
        for a in range(1, size // u + 1):
            if size % (u * a) or u > problem.heads_q:
                continue
            b = size // (u * a)
            if (u > 1) + (a > 1) + (b > 1) < 2:
                continue
            copies = max(1.0, u / problem.heads_kv)
            inside = (u - 1) / u * (q + kv * copies) + (a - 1) * q
            between = (b - 1) * kv * copies
            per_host = topology.ranks_per_host
            if topology.kind == "two_level" and per_host % (u * a) == 0:
                groups_here = min(per_host // (u * a), b)
                near = inside + (groups_here - 1) * kv * copies
                far = (b - groups_here) * kv * copies
                time = max(near / topology.bandwidth, far / topology.network_bandwidth)
            elif topology.kind == "two_level":
                time = (inside + between) / topology.network_bandwidth
            else:
                time = (inside + between) / topology.bandwidth
            if best is None or time < best[0]:
                best = (time, (u, a, b))
    return None if best is None else best[1]
