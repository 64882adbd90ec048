"""Which kernel reduces a message on GPUs, and on how many SMs. Pure: integers in, a plan out.

A path is an algorithm and a way to reach the other ranks. Its time is a fixed part plus the bytes
of the busier link direction over the link's rate, or, with few blocks, the bytes over what so many
blocks can keep in flight. A measured table takes the place of that model where it covers all paths.

The formulas are the traffic of each path; the constants are published for Hopper's NVLink: 360 GB/s
a direction, 7.8 us for a kernel with two barriers and 4.5 us for one (NCCL 2.30 cost model), about
2 us from a loaded ld_reduce to its answer. Nothing here has been measured by this library.
"""

import math
from dataclasses import dataclass
from typing import Literal, get_args

from tokenfabric.cuda.capability import Reach
from tokenweave.cuda.table import MeasuredTable
from tokenweave.plan import Algorithm, ResidualLayout

DEFAULT_SM_BUDGET = 16
"""Blocks that a call may take when nobody says how many: beyond it no published kernel gains."""

_TWO_BARRIERS_US, _ONE_BARRIER_US = 7.8, 4.5
# Bytes per microsecond in one direction, by major compute capability: 0.8 of the line rate of
# NVLink 3, 4 and 5, the share that Hopper reaches (360 of 450 GB/s).
_LINK_BYTES_PER_US = {8: 240_000.0, 9: 360_000.0, 10: 720_000.0}
# A block keeps 32 KiB of rows in flight and gets them after 2 us.
_BLOCK_BYTES_PER_US = 32768 / 2.0
# Rows of a one-shot lie in this GPU's memory when they are summed: 65 GiB/s an SM (NCCL).
_LOCAL_BLOCK_BYTES_PER_US = 65 * 2**30 / 1e6


@dataclass(frozen=True, kw_only=True, slots=True)
class CudaReductionPlan:
    """How one reduction is launched; equal on all ranks."""

    algorithm: Literal["one_shot", "two_shot"]
    reach: Literal["multicast", "peer"]
    num_blocks: int
    """Thread blocks, hence SMs, that the kernel takes on every rank."""
    residual_layout: ResidualLayout
    predicted_us: float
    is_measured: bool
    """Whether the prediction is read from a table, not computed from published constants."""
    reason: str
    """Why this path."""

    def explain(self) -> str:
        """Return one readable line."""
        kind = "measured" if self.is_measured else "predicted"
        return (
            f"{self.algorithm} over {self.reach} on {self.num_blocks} block(s), "
            f"{self.residual_layout} residual, {kind} {self.predicted_us:.1f} us ({self.reason})"
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Problem:
    num_tokens: int
    message_bytes: int
    gathered_bytes: int
    world_size: int
    link: float

    @property
    def own_bytes(self) -> float:
        return self.message_bytes / self.world_size


@dataclass(frozen=True, kw_only=True, slots=True)
class _Choice:
    algorithm: Literal["one_shot", "two_shot"]
    reach: Literal["multicast", "peer"]
    num_blocks: int
    microseconds: float


def plan_cuda_reduction(
    *,
    num_tokens: int,
    row_bytes: int,
    world_size: int,
    reach: Reach,
    compute_capability: tuple[int, int],
    sm_budget: int = DEFAULT_SM_BUDGET,
    algorithm: Algorithm = "auto",
    residual_layout: ResidualLayout = "replicated",
    gathered_row_bytes: int | None = None,
    one_shot_max_bytes: int = 0,
    can_multicast: bool = True,
    table: MeasuredTable | None = None,
) -> CudaReductionPlan:
    """Choose path and grid. The same on every rank, since all arguments are.

    Args:
        num_tokens, row_bytes: the partial sum.
        reach: what the ranks agreed on, see tokenfabric/cuda/capability.py.
        compute_capability: the lowest of all ranks.
        sm_budget: blocks that the kernel may take; fewer if fewer are as fast.
        algorithm: "auto", or what the caller insists on.
        residual_layout: row_sharded needs row owners, which one_shot has not.
        gathered_row_bytes: what a two-shot owner gives all ranks for one row; default: row_bytes,
            twice that where the residual is replicated.
        one_shot_max_bytes: largest message that the world has push slots for.
        can_multicast: whether NVLink can sum these rows: bfloat16 or float16, whole 16 bytes.
        table: measured times; used if it covers every path that is possible here.

    Raises:
        ValueError: an option is none of those there are, there is no way to reach the ranks, or the
            algorithm cannot give what is asked for.
    """
    _check(algorithm, residual_layout, reach, sm_budget)
    if gathered_row_bytes is None:
        gathered_row_bytes = row_bytes * (2 if residual_layout == "replicated" else 1)
    problem = _Problem(
        num_tokens=num_tokens,
        message_bytes=num_tokens * row_bytes,
        gathered_bytes=num_tokens * gathered_row_bytes,
        world_size=world_size,
        link=_LINK_BYTES_PER_US.get(compute_capability[0], max(_LINK_BYTES_PER_US.values())),
    )
    reaches: tuple[Literal["multicast", "peer"], ...] = ("peer",)
    if reach == "multicast" and can_multicast:
        reaches = ("multicast", "peer")
    algorithms, why = _possible(
        algorithm, residual_layout, world_size, problem.message_bytes, one_shot_max_bytes
    )
    paths = [(it, way) for it in algorithms for way in reaches]
    choices = [_predict(it, way, problem, sm_budget) for it, way in paths]
    measured = [_look_up(table, it, way, problem, sm_budget) for it, way in paths]
    is_measured = table is not None and None not in measured
    if is_measured:
        choices = [choice for choice in measured if choice is not None]
    best = min(choices, key=lambda choice: (choice.microseconds, choice.num_blocks))
    if len(choices) > 1:
        others = ", ".join(
            f"{it.algorithm} over {it.reach} {it.microseconds:.1f} us"
            for it in choices
            if it is not best
        )
        why = f"{why}; {others}" if why else f"others: {others}"
    return CudaReductionPlan(
        algorithm=best.algorithm,
        reach=best.reach,
        num_blocks=best.num_blocks,
        residual_layout=residual_layout,
        predicted_us=best.microseconds,
        is_measured=is_measured,
        reason=why or "the only path",
    )


def _check(
    algorithm: Algorithm, residual_layout: ResidualLayout, reach: Reach, sm_budget: int
) -> None:
    for name, chosen, options in (
        ("algorithm", algorithm, get_args(Algorithm)),
        ("residual_layout", residual_layout, get_args(ResidualLayout)),
    ):
        if chosen not in options:
            raise ValueError(f"{name} must be one of {options}, got {chosen!r}")
    if reach == "none":
        raise ValueError("the ranks cannot reach each other's GPUs")
    if sm_budget < 1:
        raise ValueError(f"a reduction needs at least one SM, got a budget of {sm_budget}")


def _possible(
    algorithm: Algorithm,
    residual_layout: ResidualLayout,
    world_size: int,
    message_bytes: int,
    one_shot_max_bytes: int,
) -> tuple[tuple[Literal["one_shot", "two_shot"], ...], str]:
    """Return the algorithms that can do it, and why not all."""
    lacks = None
    if residual_layout == "row_sharded" and world_size > 1:
        lacks = "a row_sharded residual needs row owners"
    elif message_bytes > one_shot_max_bytes:
        lacks = f"{message_bytes} bytes are more than the {one_shot_max_bytes} of a push slot"
    if algorithm == "one_shot":
        if lacks is not None:
            raise ValueError(f"one_shot is not possible: {lacks}; use two_shot or auto")
        return ("one_shot",), "asked for"
    if algorithm == "two_shot":
        return ("two_shot",), "asked for"
    return (("two_shot",), lacks) if lacks is not None else (("one_shot", "two_shot"), "")


def _predict(
    algorithm: Literal["one_shot", "two_shot"],
    reach: Literal["multicast", "peer"],
    problem: _Problem,
    sm_budget: int,
) -> _Choice:
    """Return the time of a path by traffic, with as few blocks as reach it."""
    size, message, gathered = problem.world_size, problem.message_bytes, problem.gathered_bytes
    if algorithm == "one_shot":
        fixed_us = _ONE_BARRIER_US
        # Every rank's rows arrive here; what multicast saves is on the way out.
        moved = float(message * (size if reach == "multicast" else size - 1))
        worked, rate = float(message * size), _LOCAL_BLOCK_BYTES_PER_US
    else:
        fixed_us = _TWO_BARRIERS_US
        if reach == "multicast":
            # Sums travel one way while finished rows travel the other.
            moved = max(message + gathered / size, message / size + gathered)
        else:
            moved = (message + gathered) * (size - 1) / size
        worked, rate = problem.own_bytes, _BLOCK_BYTES_PER_US
    link_us = moved / problem.link if size > 1 else 0.0
    own_rows = problem.num_tokens if algorithm == "one_shot" else -(-problem.num_tokens // size)
    # A block without a row only takes an SM from others.
    most = max(1, min(sm_budget, own_rows))
    enough = most
    if link_us > 0:
        enough = max(1, min(most, math.ceil(worked / (link_us * rate))))
    work_us = worked / (enough * rate)
    return _Choice(
        algorithm=algorithm,
        reach=reach,
        num_blocks=enough,
        microseconds=fixed_us + max(link_us, work_us),
    )


def _look_up(
    table: MeasuredTable | None,
    algorithm: Literal["one_shot", "two_shot"],
    reach: Literal["multicast", "peer"],
    problem: _Problem,
    sm_budget: int,
) -> _Choice | None:
    """Return the fastest measured launch of a path within the budget, None if there is none."""
    if table is None:
        return None
    found = table.best(algorithm, reach, problem.world_size, problem.message_bytes, sm_budget)
    if found is None:
        return None
    num_blocks, microseconds = found
    return _Choice(
        algorithm=algorithm, reach=reach, num_blocks=num_blocks, microseconds=microseconds
    )
