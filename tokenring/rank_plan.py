"""One rank's part of a plan, put together. Pure; the time it takes grows with the ranks, not with
their square.
"""

from collections.abc import Iterable, Sequence
from math import isqrt
from operator import itemgetter

from tokenring.blocks import Arrival, Compute, Merge, RankPlan, Span, Step, Transfer
from tokenring.inputs import Inputs, Product
from tokenring.movement import Movement
from tokenring.own import OwnRows, rows_between
from tokenring.problem import RingProblem
from tokenring.push import Grid, push_inputs
from tokenring.relay import make_rings, relay_inputs
from tokenring.results import Planned, name_results


def build_rank_plans(
    problem: RingProblem, movement: Movement, ranks: Iterable[int], own: OwnRows | None = None
) -> tuple[RankPlan, ...]:
    """Return what each of `ranks` does, step by step. Plans of one problem may share `own`."""
    own = OwnRows(problem) if own is None else own
    plans = []
    rings = make_rings(problem, movement) if movement.is_relay else ()
    grid = Grid(problem, movement)
    for rank in ranks:
        inputs = relay_inputs(rings, own, rank) if rings else push_inputs(grid, own, rank)
        plans.append(_build(problem, movement, own, rank, inputs))
    return tuple(plans)


def _build(
    problem: RingProblem, movement: Movement, own: OwnRows, rank: int, inputs: Inputs
) -> RankPlan:
    size, last_step = problem.world_size, movement.last_step
    planned = _plan_kernels(problem, movement, own, rank, inputs.products)
    results = name_results(problem, rank, planned, inputs, last_step)
    sends_of: list[list[Transfer]] = [[] for _ in range(last_step + 1)]
    arriving_of: list[list[tuple[Transfer, int]]] = [[] for _ in range(last_step + 1)]
    computes_of: list[list[Compute]] = [[] for _ in range(last_step + 1)]
    merges_of: list[list[Merge]] = [[] for _ in range(last_step + 1)]
    for sends in (inputs.sends, results.sends):
        for send in sends:
            sends_of[send[0]].append(send)
    for arriving in inputs.arrivals:
        arriving_of[arriving[0][0]].append(arriving)
    for transfer in inputs.homecoming:
        arriving_of[transfer[0]].append((transfer, last_step))
    for compute in results.computes:
        computes_of[compute[0]].append(compute)
    for merge in results.merges:
        merges_of[merge[0]].append(merge)
    for sends in sends_of:
        if len(sends) > 1:
            sends.sort(key=lambda t: issue_key(t, size))
    for coming in arriving_of:
        if len(coming) > 1:
            coming.sort(key=lambda it: issue_key(it[0], size))
    arrivals_of, slots = assign_slots(arriving_of)
    steps = tuple(
        Step(index, tuple(sends), tuple(arrivals), tuple(computes), tuple(merges))
        for index, (sends, arrivals, computes, merges) in enumerate(
            zip(sends_of, arrivals_of, computes_of, merges_of, strict=True)
        )
    )
    return RankPlan(rank=rank, steps=steps, slots=slots)


def issue_key(transfer: Transfer, size: int) -> tuple[int, str, int, str, int]:
    """Order transfers alike on both sides: by step, clockwise ones first, then by distance."""
    step, block, src, dst, _, direction = transfer
    # The names of the directions are in alphabetical order.
    return (step, direction, (dst - src) % size, block[0], block[6])


def assign_slots(
    arriving_of: Sequence[Sequence[tuple[Transfer, int]]],
) -> tuple[list[list[Arrival]], tuple[int, ...]]:
    """Give every arrival a slot that is free from its step to its last reader's, both included.

    Slots are kept apart by kind, whose blocks are of similar size, so that few bytes lie idle.

    Args:
        arriving_of: of each step, what arrives and the last step that reads it.

    Returns:
        The arrivals of each step and the bytes of the slots.
    """
    slots: list[int] = []
    free: dict[str, list[int]] = {}
    released_in: list[list[tuple[str, int]]] = [[] for _ in arriving_of]
    arrivals_of = []
    for step, coming in enumerate(arriving_of):
        if step:
            for kind, slot in released_in[step - 1]:
                free.setdefault(kind, []).append(slot)
        arrivals = []
        for transfer, release_step in coming:
            kind, num_bytes = transfer[1][0], transfer[4]
            available = free.get(kind)
            if available:
                slot = available.pop()
                if num_bytes > slots[slot]:
                    slots[slot] = num_bytes
            else:
                slot = len(slots)
                slots.append(num_bytes)
            released_in[release_step].append((kind, slot))
            arrivals.append(Arrival(transfer, slot, release_step))
        arrivals_of.append(arrivals)
    return arrivals_of, tuple(slots)


def _plan_kernels(
    problem: RingProblem,
    movement: Movement,
    own: OwnRows,
    rank: int,
    products: Sequence[Product],
) -> list[Planned]:
    planned: list[Planned] = []
    if movement.local != "fused":
        # A rank's own pairs: all in step 0, or half of them in the last step.
        q, kv = own.operands(problem.q_kind, rank), own.operands("kv", rank)
        middle = _middle_row(problem, rank) if movement.local == "split" else 0
        parts = [(0, q)]
        if middle:
            num_rows = problem.q_layout.num_rows(rank)
            parts = [
                (0, rows_between(q, 0, middle)),
                (movement.last_step, rows_between(q, middle, num_rows)),
            ]
        heads = Span(0, problem.heads_q)
        for step, part in parts:
            planned += [(step, heads, kernel) for kernel in own.group_kernels(part, kv)]
    for step, q, kv, heads in products:
        if heads.size:
            planned += [(step, heads, kernel) for kernel in own.group_kernels(q, kv)]
    planned.sort(key=itemgetter(0))
    return planned


def _middle_row(problem: RingProblem, rank: int) -> int:
    """Return the q row before and after which there is the same work, about.

    Equal rows under a causal mask see 1, 2, .. keys, in whatever chunks they lie.
    """
    rows = problem.q_layout.num_rows(rank)
    is_triangle = (
        problem.mask.right == 0
        and problem.mask.left is None
        and problem.q_rows[rank] == problem.kv_rows[rank]
    )
    return isqrt(rows * rows // 2) if is_triangle else rows // 2
