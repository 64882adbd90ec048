"""One rank's part of a plan, put together. Pure; the time it takes grows with the ranks, not with
their square.
"""

from collections.abc import Iterable, Sequence
from math import isqrt

from tokenring.blocks import Arrival, Compute, Direction, Merge, RankPlan, Span, Step, Transfer
from tokenring.inputs import Inputs, Product, own_items
from tokenring.kernels import group_kernels
from tokenring.movement import Movement
from tokenring.problem import RingProblem
from tokenring.push import Shared, push_inputs
from tokenring.reach import part_of
from tokenring.relay import relay_inputs
from tokenring.results import Planned, name_results
from tokenring.runs import Item

_DIRECTION_ORDER: dict[Direction, int] = {"clockwise": 0, "counterclockwise": 1, "direct": 2}


def build_rank_plans(
    problem: RingProblem, movement: Movement, ranks: Iterable[int]
) -> tuple[RankPlan, ...]:
    """Return what each of `ranks` does, step by step."""
    shared: Shared = {}
    return tuple(_build(problem, movement, rank, shared) for rank in ranks)


def _build(problem: RingProblem, movement: Movement, rank: int, shared: Shared) -> RankPlan:
    size = problem.world_size
    if size == 1:
        inputs = Inputs()
    elif movement.is_relay:
        inputs = relay_inputs(problem, movement, rank)
    else:
        inputs = push_inputs(problem, movement, rank, shared)
    last_step = movement.last_step
    planned = _plan_kernels(problem, movement, rank, inputs.products)
    results = name_results(problem, rank, planned, inputs, last_step)
    arriving = [*inputs.arrivals, *((transfer, last_step) for transfer in inputs.homecoming)]
    arrivals, slots = assign_slots(arriving, size)
    sends = sorted([*inputs.sends, *results.sends], key=lambda t: issue_key(t, size))
    steps = range(last_step + 1)
    sends_of: list[list[Transfer]] = [[] for _ in steps]
    arrivals_of: list[list[Arrival]] = [[] for _ in steps]
    computes_of: list[list[Compute]] = [[] for _ in steps]
    merges_of: list[list[Merge]] = [[] for _ in steps]
    for send in sends:
        sends_of[send.step].append(send)
    for arrival in arrivals:
        arrivals_of[arrival.transfer.step].append(arrival)
    for compute in results.computes:
        computes_of[compute.step].append(compute)
    for merge in results.merges:
        merges_of[merge.step].append(merge)
    return RankPlan(
        rank=rank,
        slots=slots,
        steps=tuple(
            Step(
                index=step,
                sends=tuple(sends_of[step]),
                arrivals=tuple(arrivals_of[step]),
                computes=tuple(computes_of[step]),
                merges=tuple(merges_of[step]),
            )
            for step in steps
        ),
    )


def issue_key(transfer: Transfer, size: int) -> tuple[int, int, int, str, int]:
    """Order transfers alike on both sides: by step, clockwise ones first, then by distance."""
    step, block, src, dst, _, direction = transfer
    return (step, _DIRECTION_ORDER[direction], (dst - src) % size, block.kind, block.part)


def assign_slots(
    arriving: Iterable[tuple[Transfer, int]], size: int
) -> tuple[list[Arrival], tuple[int, ...]]:
    """Give every arrival a slot that is free from its step to its last reader's, both included.

    Slots are kept apart by kind, whose blocks are of similar size, so that few bytes lie idle.
    """
    arrivals: list[Arrival] = []
    slots: list[int] = []
    free: dict[str, list[int]] = {}
    taken: list[tuple[int, str, int]] = []
    step = -1
    for transfer, release_step in sorted(arriving, key=lambda item: issue_key(item[0], size)):
        if transfer.step > step:
            step = transfer.step
            for entry in [entry for entry in taken if entry[0] < step]:
                taken.remove(entry)
                free.setdefault(entry[1], []).append(entry[2])
        kind = transfer.block.kind
        if free.get(kind):
            slot = free[kind].pop()
            slots[slot] = max(slots[slot], transfer.num_bytes)
        else:
            slot = len(slots)
            slots.append(transfer.num_bytes)
        taken.append((release_step, kind, slot))
        arrivals.append(Arrival(transfer, slot, release_step))
    return arrivals, tuple(slots)


def _plan_kernels(
    problem: RingProblem, movement: Movement, rank: int, products: Sequence[Product]
) -> list[Planned]:
    planned = []
    if movement.local != "fused":
        planned += _plan_local(problem, movement, rank)
    for step, q, kv, heads in products:
        if q and kv and heads.size:
            kernels = group_kernels(problem.mask, q, kv)
            planned += [Planned(step, heads, kernel) for kernel in kernels]
    planned.sort(key=lambda item: item.step)
    return planned


def _plan_local(problem: RingProblem, movement: Movement, rank: int) -> list[Planned]:
    """Return the kernels of a rank's own pairs: all in step 0, or half of them in the last step."""
    q = own_items(problem, problem.q_kind, rank)
    kv = own_items(problem, "kv", rank)
    heads = Span(0, problem.heads_q)
    middle = 0
    if movement.local == "split":
        middle = _middle_row(problem, rank)
    if middle == 0:
        return [Planned(0, heads, kernel) for kernel in group_kernels(problem.mask, q, kv)]
    planned = []
    for step, first, stop in ((0, 0, middle), (movement.last_step, middle, None)):
        kernels = group_kernels(problem.mask, _rows_between(q, first, stop), kv)
        planned += [Planned(step, heads, kernel) for kernel in kernels]
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


def _rows_between(items: Sequence[Item], first: int, stop: int | None) -> list[Item]:
    found = []
    for item, block in items:
        a = max(first - item.row, 0)
        b = item.size if stop is None else min(stop - item.row, item.size)
        if a < b:
            found.append((part_of(item, a, b), block))
    return found
