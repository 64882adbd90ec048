"""The plan of one attention call over a sequence sharded across ranks. Pure: integers in, data out.

    plan = plan_attention(world_size=8, tokens=65536, partition="zigzag", causal=True,
                          heads_q=32, heads_kv=8, head_dim=128)
    text = plan.explain()           # what was chosen and why, bytes, balance, predicted times
    part = plan.of_rank(3)          # the steps of rank 3; blocks.py says how they are walked

Forward and backward are planned apart: which tensor is the smaller one differs.

Decoding is a call like any other: q_layout holds each sequence's new tokens (starts = the lengths
of their caches) on the ranks that made them, kv_layout the caches with the new tokens on whichever
ranks hold them, causal=True. Q is then thousands of times smaller than KV, so that auto moves Q:
every rank gets all queries, computes them over its part of the cache in one kernel for each
sequence, and returns (out, lse) to the owners, who merge. A prompt prefilled behind a cache moves Q
or KV, whichever is less.

auto plans every candidate for some ranks, which takes many times as long as the plan it then makes;
the ranking is kept for calls of the same sizes. A loop whose sizes change all the time passes
strategy=plan.movement of an earlier plan.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from tokenfabric.errors import ConfigError
from tokenfabric.schedule import Schedule
from tokenring.blocks import RankPlan
from tokenring.check import check_plan
from tokenring.choose import Candidate, rank_candidates
from tokenring.cost import Estimate, estimate
from tokenring.explain import explain_plan
from tokenring.lower import lower_plans
from tokenring.mask import make_mask
from tokenring.movement import LocalWork, Movement, make_movement
from tokenring.partition import Layout, Partition, partition_tokens
from tokenring.problem import ElementSizes, Pass, RingProblem
from tokenring.rank_plan import build_rank_plans
from tokenring.topology import Topology, TopologyKind


@dataclass(frozen=True, kw_only=True)
class RingPlan:
    """What every rank does, or one of them where only its part was asked for."""

    problem: RingProblem
    movement: Movement
    topology: Topology
    ranks: tuple[RankPlan, ...]
    """In order of rank; one where plan_attention was given a rank."""
    candidates: tuple[Candidate, ...]
    """What auto chose from, the fastest first; empty where a strategy was asked for."""

    @property
    def strategy(self) -> str:
        """The name of the strategy, as one can ask for it."""
        return self.movement.name

    @property
    def num_steps(self) -> int:
        """How many steps all ranks have, computing or not."""
        return self.movement.last_step + 1

    def of_rank(self, rank: int) -> RankPlan:
        """Return the part of a rank.

        Raises:
            ConfigError: the plan was made for another rank only.
        """
        for part in self.ranks:
            if part.rank == rank:
                return part
        planned = ", ".join(str(part.rank) for part in self.ranks)
        raise ConfigError(f"rank {rank} is not in this plan of rank(s) {planned}")

    def bytes_sent(self, rank: int) -> int:
        """Return the payload bytes that a rank sends in one call."""
        return self.of_rank(rank).bytes_sent

    def estimate(self) -> Estimate:
        """Return the predicted times, over the ranks that are in the plan."""
        return estimate(self.problem, self.ranks, self.topology)

    def explain(self) -> str:
        """Return a readable table: the choice and its reasons, bytes, balance of work, times."""
        return explain_plan(self.problem, self.movement, self.topology, self.ranks, self.candidates)

    def lower(self) -> Schedule:
        """Return the plan in the format that simulators time and traces draw."""
        return lower_plans(self.ranks)

    def check(self, max_rows: int = 4096) -> None:
        """Check the whole plan: every pair once, everything there when it is read, all merged.

        Args:
            max_rows: q rows of a rank that are checked one by one; of more, those at the edges of
                kernels and some between.

        Raises:
            PlanError: it is wrong; the planner has a bug.
            ConfigError: this is the plan of one rank of several.
        """
        check_plan(self.problem, self.ranks, max_rows)


def plan_attention(
    *,
    heads_q: int,
    heads_kv: int,
    head_dim: int,
    head_dim_v: int | None = None,
    batch: int = 1,
    world_size: int | None = None,
    tokens: int | Sequence[int] | None = None,
    partition: Partition = "zigzag",
    q_layout: Layout | None = None,
    kv_layout: Layout | None = None,
    causal: bool = False,
    window: int | tuple[int, int] | None = None,
    direction: Pass = "forward",
    element_sizes: ElementSizes | None = None,
    strategy: str | Movement = "auto",
    grid: tuple[int, int, int] | None = None,
    num_stages: int | None = None,
    local: LocalWork | None = None,
    topology: Topology | TopologyKind = "switch",
    rank: int | None = None,
) -> RingPlan:
    """Plan exact attention of sharded q over sharded k, v. The same on every rank.

    Args:
        heads_q, heads_kv: query and KV heads; each KV head serves heads_q / heads_kv query heads.
        head_dim, head_dim_v: width of q and k, and of v and out (head_dim if None).
        batch: entries with the same layout; they share each transfer and multiply its bytes.
        world_size, tokens, partition: how many ranks, the length of the sequence (or of each of
            several packed ones) and how they are dealt; instead of q_layout.
        q_layout: which tokens' queries each rank holds.
        kv_layout: which tokens' keys each rank holds; as the queries if None.
        causal: a query sees no later position of its sequence.
        window: with causal, how many keys a query sees, its own included; without, (left, right).
        direction: "forward" or "backward".
        element_sizes: bytes of the elements in transfers; 2, and 4 for dk and dv, if None.
        strategy: "auto", one of movement.STRATEGIES, or the movement of an earlier plan: its
            strategy, grid, num_stages and local.
        grid: (u, a, b) for strategy "grid".
        num_stages: rounds of a push, at most; more hide more and give smaller kernels.
        local: what becomes of a rank's own pairs; see movement.py.
        topology: what connects the ranks, or the name of a preset.
        rank: plan only this rank's part; all ranks' if None.

    Returns:
        The plan. Lengths need not be divisible by anything; ranks may have no rows.

    Raises:
        ConfigError: an argument is out of range or contradicts another.
    """
    if q_layout is None:
        if world_size is None or tokens is None:
            raise ConfigError("pass q_layout, or world_size and tokens to make one")
        q_layout = partition_tokens(tokens, world_size, partition)
    elif tokens is not None or world_size not in (None, q_layout.world_size):
        raise ConfigError(
            f"q_layout already says {q_layout.num_tokens} tokens on {q_layout.world_size} ranks: "
            "leave out tokens and world_size"
        )
    problem = RingProblem(
        q_layout=q_layout,
        kv_layout=q_layout if kv_layout is None else kv_layout,
        mask=make_mask(is_causal=causal, window=window),
        direction=direction,
        batch=batch,
        heads_q=heads_q,
        heads_kv=heads_kv,
        head_dim=head_dim,
        head_dim_v=head_dim if head_dim_v is None else head_dim_v,
        element_sizes=element_sizes or ElementSizes(),
    )
    if isinstance(topology, str):
        topology = Topology.preset(topology)
    if rank is not None and not 0 <= rank < problem.world_size:
        raise ConfigError(f"rank {rank} is not in 0..{problem.world_size - 1}")
    candidates: tuple[Candidate, ...] = ()
    is_chosen = not isinstance(strategy, Movement) and strategy != "auto"
    if not is_chosen and (grid, num_stages, local) != (None, None, None):
        raise ConfigError(
            "auto and an earlier movement say grid, num_stages and local themselves: leave them "
            "out, or name a strategy"
        )
    if isinstance(strategy, Movement):
        movement = make_movement(
            strategy.name,
            problem,
            grid=(strategy.u, strategy.a, strategy.b) if strategy.name == "grid" else None,
            num_stages=strategy.num_stages or None,
            local=strategy.local,
        )
    elif strategy == "auto":
        candidates = rank_candidates(problem, topology)
        movement = candidates[0].movement
    else:
        movement = make_movement(strategy, problem, grid=grid, num_stages=num_stages, local=local)
    ranks = range(problem.world_size) if rank is None else (rank,)
    return RingPlan(
        problem=problem,
        movement=movement,
        topology=topology,
        ranks=build_rank_plans(problem, movement, ranks),
        candidates=candidates,
    )
