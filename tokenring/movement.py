"""Strategies: which tensor visits which rank, by which way and when. Pure.

Every strategy is a grid of u x a x b ranks, rank = (z * a + y) * u + x with x < u, y < a, z < b. Of
the pairs of rank i's queries with rank j's keys, rank (x, y of j, z of i) computes the heads of
part x. So Q goes to the a ranks with its z, KV to the b ranks with its y, each split over u parts
of the heads:

    name               u  a  b   way    what travels
    q                  1  N  1   relay  Q from rank to rank, out straight back (TokenRing)
    q_push             1  N  1   push   Q from its owner, out straight back
    kv                 1  1  N   relay  KV from rank to rank
    kv_bidirectional   1  1  N   relay  half the KV heads (or tokens) each way round
    kv_push            1  1  N   push   KV from its owner
    allgather          1  1  N   push   all KV in one step, then one computation; no overlap
    ulysses            N  1  1   push   everything: each rank computes all tokens of its heads
    grid               u  a  b   push   Q within groups of a, KV between b groups, heads over u

In the backward Q is (q, dout, lse, delta), out is dq, and KV brings dkv back: straight to its owner
(push), or added up in fp32 from rank to rank on its way round (relay). The rounds of a relay are
the ring's distances. A push is cut in at most `num_stages` rounds of consecutive distances: fewer,
larger kernels, and no more than two rounds of blocks in memory.

A rank's own q and kv hide what is exposed else: the first half of that work runs while the first
blocks come, the last while the last results go home ("split"). It runs whole at the beginning where
nothing goes home ("whole"), and with the blocks of the first round, in fewer kernels, where there
is too little of it to hide anything ("fused"). The published TokenRing is q with its local work
whole, which leaves the last results exposed.
"""

from dataclasses import dataclass
from typing import Literal, get_args

from tokenfabric.errors import ConfigError
from tokenring.blocks import Direction
from tokenring.direction import best_direction
from tokenring.problem import RingProblem

StrategyName = Literal[
    "q", "q_push", "kv", "kv_bidirectional", "kv_push", "allgather", "ulysses", "grid"
]
STRATEGIES: tuple[str, ...] = get_args(StrategyName)
LocalWork = Literal["split", "whole", "fused"]

DEFAULT_NUM_STAGES = 4
"""Rounds of a push: enough for the first to be short, few enough for large kernels."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Movement:
    """A strategy made concrete for a world."""

    name: StrategyName
    u: int
    a: int
    b: int
    is_relay: bool
    is_bidirectional: bool
    num_stages: int
    """Rounds of remote work, the same on every rank."""
    local: LocalWork
    has_returns: bool
    """Whether results go home after the last round."""
    direction: Direction
    """Of a one-way relay; direct for a push."""

    @property
    def last_step(self) -> int:
        """The step of the final merges."""
        return self.num_stages + (self.has_returns or self.local == "split")

    def coordinates(self, rank: int) -> tuple[int, int, int]:
        """Return (x, y, z) of a rank."""
        return rank % self.u, rank // self.u % self.a, rank // (self.u * self.a)

    def rank_at(self, x: int, y: int, z: int) -> int:
        return (z * self.a + y) * self.u + x

    def q_stage(self, owner_y: int, y: int) -> int:
        """Return the round in which the q of a row y of the grid is computed on another; 0: local
        or at once."""
        if self.b > 1:
            return 1
        return self._stage((owner_y - y) % self.a, self.a)

    def kv_stage(self, owner_z: int, z: int) -> int:
        """Return the round in which the kv of one group of the grid is computed in another."""
        return self._stage((owner_z - z) % self.b, self.b)

    def _stage(self, distance: int, count: int) -> int:
        if distance == 0:
            return 0
        return 1 + (distance - 1) * self.num_stages // (count - 1)


def make_movement(
    name: str,
    problem: RingProblem,
    *,
    grid: tuple[int, int, int] | None = None,
    num_stages: int | None = None,
    local: LocalWork | None = None,
) -> Movement:
    """Return how a strategy moves tensors in this problem's world.

    Args:
        name: one of STRATEGIES.
        problem: what is planned.
        grid: (u, a, b) with u * a * b ranks, for grid, which cannot do without.
        num_stages: rounds of a push, at most.
        local: what becomes of a rank's own pairs; by default what hides most. Only push strategies
            that do not split heads can choose.

    Raises:
        ConfigError: the name is unknown, the grid does not fit the world, or there is no stage.
    """
    size = problem.world_size
    if name not in STRATEGIES:
        raise ConfigError(
            f"unknown strategy {name!r}: choose auto or one of {', '.join(STRATEGIES)}"
        )
    if num_stages is not None and num_stages < 1:
        raise ConfigError(f"num_stages is {num_stages}: pass at least 1, or None")
    if local is not None and local not in get_args(LocalWork):
        raise ConfigError(f"local {local!r} must be one of {get_args(LocalWork)}, or None")
    if name == "grid":
        if grid is None:
            raise ConfigError(
                f"grid needs grid=(u, a, b), three factors of the {size} ranks, or strategy auto"
            )
        u, a, b = grid
        if min(grid) < 1 or u * a * b != size:
            raise ConfigError(f"grid {grid} has {u * a * b} places, the world {size} ranks")
    else:
        u, a, b = {"q": (1, size, 1), "q_push": (1, size, 1), "ulysses": (size, 1, 1)}.get(
            name, (1, 1, size)
        )
    is_relay = name in ("q", "kv", "kv_bidirectional")
    count = max(a, b) if b == 1 or a == 1 else b
    if is_relay:
        stages = count - 1
    elif size == 1:
        stages = 0
    elif name == "allgather" or (a, b) == (1, 1):
        stages = 1
    else:
        stages = max(1, min(count - 1, num_stages or DEFAULT_NUM_STAGES))
    has_returns = size > 1 and (u > 1 or a > 1 or problem.direction == "backward")
    if size == 1:
        chosen: LocalWork = "whole"
    elif u > 1 or name == "allgather":
        chosen = "fused"
    else:
        chosen = local or ("split" if has_returns else "whole")
        if is_relay and chosen == "fused":
            raise ConfigError(f"strategy {name} passes blocks on one by one: local cannot be fused")
        if chosen == "fused" and (a > 1 or b > 1):
            stages = 1
    return Movement(
        name=name,  # type: ignore[arg-type]  # one of the names, as checked above
        u=u,
        a=a,
        b=b,
        is_relay=is_relay,
        is_bidirectional=name == "kv_bidirectional",
        num_stages=stages,
        local=chosen,
        has_returns=has_returns,
        direction=best_direction(problem, is_q=a > 1) if is_relay else "direct",
    )
