"""Which way round relayed blocks go, and what of them the ranks on the way need. Pure."""

from tokenring.blocks import Direction
from tokenring.mask import Mask
from tokenring.problem import RingProblem
from tokenring.reach import Reach, Rows, join_reaches, needed_rows


def best_direction(problem: RingProblem, *, is_q: bool) -> Direction:
    """Return the way round in which the block of the middle rank carries fewer rows.

    A causal mask makes the difference: contiguous KV goes clockwise, past those who see it, and
    zigzag blocks go counterclockwise, whole first and then only the half that is still needed.
    """
    size = problem.world_size
    if problem.mask == Mask(None, None) or size == 1:
        return "clockwise"
    owner = size // 2
    travelling, asked = rows_that_travel(problem, is_q)[owner], asked_by_rank(problem, is_q)
    totals = []
    for sign in (1, -1):
        ahead: Reach = {}
        total = num_rows = 0
        for distance in range(size - 1, 0, -1):
            joined = join_reaches(ahead, asked[(owner + sign * distance) % size])
            if joined is not ahead:
                ahead = joined
                num_rows = sum([item.size for item in needed_rows(travelling, ahead)])
            total += num_rows
        totals.append(total)
    return "counterclockwise" if totals[1] < totals[0] else "clockwise"


def rows_that_travel(problem: RingProblem, is_q: bool) -> tuple[tuple[Rows, ...], ...]:
    """Return each rank's rows of the tensor that goes round."""
    return problem.q_rows if is_q else problem.kv_rows


def asked_by_rank(problem: RingProblem, is_q: bool) -> tuple[Reach, ...]:
    """Return what of the tensor that goes round each rank needs."""
    return problem.queries_asked if is_q else problem.keys_asked
