"""Which way round relayed blocks go, and what of them the ranks on the way need. Pure."""

from collections.abc import Sequence

from tokenring.blocks import Direction
from tokenring.mask import Mask
from tokenring.problem import RingProblem
from tokenring.reach import Reach, Rows, needed_rows


def best_direction(problem: RingProblem, *, is_q: bool) -> Direction:
    """Return the way round in which the block of the middle rank carries fewer rows.

    A causal mask makes the difference: contiguous KV goes clockwise, past those who see it, and
    zigzag blocks go counterclockwise, whole first and then only the half that is still needed.
    """
    size = problem.world_size
    if problem.mask == Mask(None, None) or size == 1:
        return "clockwise"
    owner = size // 2
    rows, askers = rows_that_travel(problem, is_q)[owner], rows_that_ask(problem, is_q)
    totals = []
    for sign in (1, -1):
        ahead, total = Reach(has_runs=problem.mask.is_two_sided), 0
        for distance in range(size - 1, 0, -1):
            ahead.add(askers[(owner + sign * distance) % size])
            total += sum(item.size for item in rows_needed(problem, is_q, rows, ahead))
        totals.append(total)
    return "counterclockwise" if totals[1] < totals[0] else "clockwise"


def rows_that_travel(problem: RingProblem, is_q: bool) -> tuple[tuple[Rows, ...], ...]:
    """Return each rank's rows of the tensor that goes round."""
    return problem.q_rows if is_q else problem.kv_rows


def rows_that_ask(problem: RingProblem, is_q: bool) -> tuple[tuple[Rows, ...], ...]:
    """Return each rank's rows of the tensor that stays."""
    return problem.kv_rows if is_q else problem.q_rows


def rows_needed(problem: RingProblem, is_q: bool, rows: Sequence[Rows], reach: Reach) -> list[Rows]:
    """Return which rows that travel the ranks with this reach need."""
    left, right = problem.mask.left, problem.mask.right
    before, after = (right, left) if is_q else (left, right)
    return needed_rows(rows, reach, None if before is None else -before, after)
