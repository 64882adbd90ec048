"""Plans of tokenweave: how a reduction is done. Pure: integers in, frozen dataclasses out."""

from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Literal, get_args

Algorithm = Literal["auto", "one_shot", "two_shot"]
Output = Literal["private", "own_rows", "shared"]
ResidualLayout = Literal["replicated", "row_sharded"]

# Below this many bytes of partial sum, adding all ranks' rows everywhere costs less than the second
# barrier and the exchange of results (measured on CPU ranks, see benchmarks/results).
ONE_SHOT_MAX_BYTES = 16 << 10
# The same, divided by the number of ranks, where every rank wants all of the residual too: then
# two-shot exchanges two tensors instead of one.
ONE_SHOT_MAX_BYTES_REPLICATED = 256 << 10
# The same where ranks share cores: a barrier then costs scheduler slices, not cache misses.
ONE_SHOT_MAX_BYTES_OVERSUBSCRIBED = 256 << 10
# A block is staged, reduced and copied out while it is in a core's own cache (1 to 2 MiB of L2).
BLOCK_BYTES = 512 << 10
# A result of this size has left the caches (32 MiB of L3 that the ranks share) before the next
# block reads it, and writing it through them would read every line from memory first.
STREAMING_MIN_BYTES = 16 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class ReductionPlan:
    """How one all-reduce over shared memory is done."""

    algorithm: Literal["one_shot", "two_shot"]
    """one_shot: every rank reduces every row. two_shot: rank r reduces its rows, then they are
    exchanged.
    """
    output: Output
    """Where the result goes: private memory, own rows only, or one tensor mapped by all ranks."""
    residual_layout: ResidualLayout
    block_rows: int
    """Rows that pass through staging at a time: of the tensor (one_shot), of each rank's share
    (two_shot).
    """
    is_streaming: bool
    """Whether the result is written around the caches, too small to keep it for its reader."""
    reason: str
    """Why this algorithm."""

    def explain(self) -> str:
        """Return one readable line."""
        return (
            f"{self.algorithm} ({self.reason}), {self.output} output, {self.residual_layout} "
            f"residual, blocks of {self.block_rows} rows"
            f"{', streaming stores' if self.is_streaming else ''}"
        )


def split_rows(num_rows: int, world_size: int) -> tuple[tuple[int, int], ...]:
    """Deal rows to ranks: contiguous, sizes differing by at most one, the larger ones first.

    Returns:
        (start, stop) of every rank. Example: 7 rows over 3 ranks are (0, 3), (3, 5), (5, 7).
    """
    base, larger = divmod(num_rows, world_size)
    starts = [rank * base + min(rank, larger) for rank in range(world_size + 1)]
    return tuple(pairwise(starts))


@lru_cache(maxsize=4096)
def plan_reduction(
    *,
    num_tokens: int,
    hidden: int,
    element_size: int,
    world_size: int,
    staging_bytes: int,
    algorithm: Algorithm = "auto",
    output: Output = "private",
    residual_layout: ResidualLayout = "replicated",
    has_residual: bool = True,
    is_oversubscribed: bool = False,
    exchanged_row_bytes: int | None = None,
) -> ReductionPlan:
    """Choose algorithm and block size. The same on every rank, since all arguments are.

    Args:
        num_tokens, hidden, element_size: the partial sum, [num_tokens, hidden] of so many bytes
            each.
        staging_bytes: size of one staging slot of the world.
        algorithm: "auto", or what the caller insists on.
        is_oversubscribed: whether the ranks have more threads than cores.
        has_residual: whether the sum is kept beside the result (not in a plain all-reduce).
        exchanged_row_bytes: what a two-shot owner gives its peers for one row; default: a result
            and a residual like the partial sum.

    Raises:
        ValueError: an option is none of those there are, the algorithm cannot give the output or
            residual layout, or a row does not fit.
    """
    for name, chosen_option, options in (
        ("algorithm", algorithm, get_args(Algorithm)),
        ("output", output, get_args(Output)),
        ("residual_layout", residual_layout, get_args(ResidualLayout)),
    ):
        if chosen_option not in options:
            raise ValueError(f"{name} must be one of {options}, got {chosen_option!r}")
    row_bytes = hidden * element_size
    chosen, reason = _choose_algorithm(
        num_tokens * row_bytes,
        world_size,
        algorithm,
        output,
        residual_layout,
        has_residual,
        _one_shot_max_bytes(
            world_size,
            is_replicated=has_residual and residual_layout == "replicated",
            is_oversubscribed=is_oversubscribed,
        ),
    )
    # Two-shot stages a block for each peer, and its own results on the way back.
    staged_bytes = row_bytes
    if chosen == "two_shot":
        results = 2 * row_bytes if exchanged_row_bytes is None else exchanged_row_bytes
        staged_bytes = max((world_size - 1) * row_bytes, results)
    limit = staging_bytes // staged_bytes
    if world_size > 1 and limit < 1:
        raise ValueError(
            f"a row of {hidden} elements needs {staged_bytes} bytes of staging, "
            f"the world has {staging_bytes}"
        )
    share = num_tokens if chosen == "one_shot" else -(-num_tokens // world_size)
    block_rows = max(1, min(BLOCK_BYTES // row_bytes, limit, share))
    return ReductionPlan(
        algorithm=chosen,
        output=output,
        residual_layout=residual_layout,
        block_rows=block_rows,
        is_streaming=num_tokens * row_bytes >= STREAMING_MIN_BYTES,
        reason=reason,
    )


def plan_residual_layout(
    *, num_tokens: int, hidden: int, element_size: int, world_size: int, is_oversubscribed: bool
) -> ResidualLayout:
    """Choose the layout of a residual that nobody but the next reduction reads.

    With row owners, two-shot, its other rows need not travel. One-shot needs all of it, and is the
    cheaper of the two below a size.
    """
    limit = _one_shot_max_bytes(
        world_size, is_replicated=False, is_oversubscribed=is_oversubscribed
    )
    if world_size == 1 or num_tokens * hidden * element_size <= limit:
        return "replicated"
    return "row_sharded"


def _one_shot_max_bytes(world_size: int, *, is_replicated: bool, is_oversubscribed: bool) -> int:
    if is_oversubscribed:
        return ONE_SHOT_MAX_BYTES_OVERSUBSCRIBED
    if is_replicated:
        return max(ONE_SHOT_MAX_BYTES, ONE_SHOT_MAX_BYTES_REPLICATED // world_size)
    return ONE_SHOT_MAX_BYTES


def _choose_algorithm(
    num_bytes: int,
    world_size: int,
    algorithm: Algorithm,
    output: Output,
    residual_layout: ResidualLayout,
    has_residual: bool,
    one_shot_max_bytes: int,
) -> tuple[Literal["one_shot", "two_shot"], str]:
    needs_two_shot = output != "private" or (residual_layout == "row_sharded" and world_size > 1)
    if algorithm == "one_shot" and needs_two_shot:
        raise ValueError(
            f"one_shot gives every rank all rows: it cannot keep a {residual_layout} residual with "
            f"{output} output; use two_shot or auto"
        )
    if output != "private" and residual_layout == "replicated" and world_size > 1 and has_residual:
        raise ValueError(
            f"{output} output keeps the residual row_sharded: no step brings other rows here"
        )
    if algorithm != "auto":
        return algorithm, "asked for"
    if needs_two_shot:
        return "two_shot", f"{output} output and {residual_layout} residual need row owners"
    if world_size == 1:
        return "one_shot", "a single rank"
    if num_bytes <= one_shot_max_bytes:
        return "one_shot", f"{num_bytes} bytes are at most {one_shot_max_bytes}"
    return "two_shot", f"{num_bytes} bytes are more than {one_shot_max_bytes}"
