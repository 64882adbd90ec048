"""The checker of plans finds mistakes: each is planted in a right plan. Pure."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from tokenfabric.errors import ConfigError
from tokenring.blocks import Arrival, Band, Compute, Merge, RankPlan, Step
from tokenring.check import check_plan
from tokenring.check_coverage import PlanError
from tokenring.mask import count_pairs
from tokenring.plan import RingPlan, plan_attention

Ranks = list[RankPlan]


def plan_of(strategy: str, direction: str = "forward") -> RingPlan:
    return plan_attention(
        world_size=4, tokens=34, causal=True, heads_q=4, heads_kv=2, head_dim=4, strategy=strategy,
        direction=direction,  # type: ignore[arg-type]
    )  # fmt: skip


def change_step(plan: RankPlan, index: int, **changes: Any) -> RankPlan:
    steps = list(plan.steps)
    steps[index] = steps[index]._replace(**changes)
    return replace(plan, steps=tuple(steps))


def change_compute(plans: Ranks, edit: Callable[[Compute], Compute], *, masked: bool) -> None:
    """Edit the first compute of rank 2 that has, or has not, a mask."""
    for step in plans[2].steps:
        for place, compute in enumerate(step.computes):
            if (compute.band != (None, None)) == masked:
                computes = (*step.computes[:place], edit(compute), *step.computes[place + 1 :])
                plans[2] = change_step(plans[2], step.index, computes=computes)
                return
    raise AssertionError("the plan has no such compute")


def shift_band(compute: Compute) -> Compute:
    lower, upper = compute.band
    band = Band(lower, (upper or 0) - 1)
    pairs = count_pairs(band, compute.q_rows, compute.kv_rows)
    flops = compute.flops // compute.num_pairs * pairs
    return compute._replace(band=band, num_pairs=pairs, flops=flops)


def mask_off_by_one(plans: Ranks) -> None:
    change_compute(plans, shift_band, masked=True)


def mask_left_out(plans: Ranks) -> None:
    def unmask(compute: Compute) -> Compute:
        pairs = compute.q_rows * compute.kv_rows
        flops = compute.flops // compute.num_pairs * pairs
        return compute._replace(band=Band(None, None), num_pairs=pairs, flops=flops)

    change_compute(plans, unmask, masked=True)


def mask_on_full_block(plans: Ranks) -> None:
    change_compute(plans, shift_band, masked=False)


def compute_left_out(plans: Ranks) -> None:
    step = next(s for s in plans[1].steps if s.computes)
    plans[1] = change_step(plans[1], step.index, computes=step.computes[1:])


def compute_done_twice(plans: Ranks) -> None:
    step = next(s for s in plans[1].steps if s.computes)
    plans[1] = change_step(plans[1], step.index, computes=(*step.computes, step.computes[0]))


def compute_too_early(plans: Ranks) -> None:
    index = next(s.index for s in plans[0].steps if s.index and s.computes)
    before, step = plans[0].steps[index - 1], plans[0].steps[index]
    moved = tuple(compute._replace(step=index - 1) for compute in step.computes)
    plans[0] = change_step(plans[0], index, computes=())
    plans[0] = change_step(plans[0], index - 1, computes=(*before.computes, *moved))


def flops_wrong(plans: Ranks) -> None:
    change_compute(plans, lambda c: c._replace(flops=c.flops + 1), masked=True)


def pieces_misplaced(plans: Ranks) -> None:
    def misplace(compute: Compute) -> Compute:
        piece = compute.kv[0]
        return compute._replace(kv=(piece._replace(offset=piece.offset + 1), *compute.kv[1:]))

    change_compute(plans, misplace, masked=True)


def result_step(plan: RankPlan) -> Step:
    return next(step for step in plan.steps if any(t.block.role == "returned" for t in step.sends))


def wrong_return_distance(plans: Ranks) -> None:
    step = result_step(plans[1])
    sends = tuple(
        t._replace(dst=(t.dst + 1) % 4 if (t.dst + 1) % 4 != 1 else 2)
        if t.block.role == "returned" else t
        for t in step.sends
    )  # fmt: skip
    plans[1] = change_step(plans[1], step.index, sends=sends)


def return_left_out(plans: Ranks) -> None:
    """Both sides forget it, so that all messages match."""
    step = result_step(plans[1])
    lost = next(t for t in step.sends if t.block.role == "returned")
    plans[1] = change_step(plans[1], step.index, sends=tuple(t for t in step.sends if t != lost))
    there = plans[lost.dst].steps[step.index]
    plans[lost.dst] = change_step(
        plans[lost.dst], step.index,
        arrivals=tuple(a for a in there.arrivals if a.transfer != lost),
    )  # fmt: skip


def final_merge(plans: Ranks, rank: int) -> tuple[int, Merge]:
    step = plans[rank].steps[-1]
    return step.index, step.merges[0]


def missing_merge(plans: Ranks) -> None:
    index, _ = final_merge(plans, 3)
    plans[3] = change_step(plans[3], index, merges=())


def merge_forgets_an_input(plans: Ranks) -> None:
    index, merge = final_merge(plans, 3)
    lost = merge.inputs[-1]
    segments = tuple(
        s._replace(inputs=tuple(b for b in s.inputs if b != lost)) for s in merge.segments
    )
    rest = plans[3].steps[-1].merges[1:]
    plans[3] = change_step(plans[3], index, merges=(merge._replace(segments=segments), *rest))


def merge_forgets_rows(plans: Ranks) -> None:
    index, merge = final_merge(plans, 3)
    rest = plans[3].steps[-1].merges[1:]
    merge = merge._replace(segments=merge.segments[:-1])
    plans[3] = change_step(plans[3], index, merges=(merge, *rest))


def merge_adds_twice(plans: Ranks) -> None:
    index, merge = final_merge(plans, 3)
    first = merge.segments[0]
    double = first._replace(inputs=(*first.inputs, first.inputs[0]))
    rest = plans[3].steps[-1].merges[1:]
    merge = merge._replace(segments=(double, *merge.segments[1:]))
    plans[3] = change_step(plans[3], index, merges=(merge, *rest))


def receive_left_out(plans: Ranks) -> None:
    step = next(s for s in plans[0].steps if s.arrivals)
    plans[0] = change_step(plans[0], step.index, arrivals=step.arrivals[1:])


def bytes_wrong(plans: Ranks) -> None:
    step = next(s for s in plans[0].steps if s.sends)
    first = step.sends[0]._replace(num_bytes=step.sends[0].num_bytes + 2)
    plans[0] = change_step(plans[0], step.index, sends=(first, *step.sends[1:]))


def change_arrival(plans: Ranks, edit: Callable[[Arrival], Arrival]) -> None:
    step = next(s for s in plans[0].steps if s.arrivals)
    first = edit(step.arrivals[0])
    plans[0] = change_step(plans[0], step.index, arrivals=(first, *step.arrivals[1:]))


def released_too_early(plans: Ranks) -> None:
    change_arrival(plans, lambda a: a._replace(release_step=a.transfer.step))


def slot_shared(plans: Ranks) -> None:
    arrivals = plans[0].arrivals
    plans[0] = replace(plans[0], slots=(max(plans[0].slots),) * len(plans[0].slots))
    change_arrival(plans, lambda a: a._replace(slot=arrivals[1].slot))


def slot_too_small(plans: Ranks) -> None:
    plans[0] = replace(plans[0], slots=tuple(size - 1 for size in plans[0].slots))


MISTAKES = [
    (mask_off_by_one, "is computed"),
    (mask_left_out, "is computed"),
    (mask_on_full_block, "is computed"),
    (compute_left_out, "."),
    (compute_done_twice, "twice"),
    (compute_too_early, "on its way|not there yet"),
    (flops_wrong, "FLOP"),
    (pieces_misplaced, "do not fill"),
    (wrong_return_distance, "disagree"),
    (return_left_out, "0 times|never arrives"),
    (missing_merge, "never merges"),
    (merge_forgets_an_input, "instead of once"),
    (merge_forgets_rows, "cover the output|left out"),
    (merge_adds_twice, "added twice"),
    (receive_left_out, "disagree"),
    (bytes_wrong, "bytes where"),
    (released_too_early, "released|overlap"),
    (slot_shared, "overlap"),
    (slot_too_small, "does not fit"),
]


@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize(("mistake", "message"), MISTAKES)
def test_planted_mistake_is_found(
    mistake: Callable[[Ranks], None], message: str, direction: str
) -> None:
    """The right plan passes, the wrong one is refused for the right reason."""
    plan = plan_of("q_push", direction)
    plan.check()
    ranks = list(plan.ranks)
    mistake(ranks)
    assert ranks != list(plan.ranks)
    with pytest.raises(PlanError, match=message):
        check_plan(plan.problem, ranks)


def test_mistake_in_a_relay_is_found() -> None:
    """A block that is passed on with rows that the rank never had."""
    plan = plan_of("kv")
    ranks = list(plan.ranks)
    for rank in (1, 2):
        step = ranks[rank].steps[1]
        sends = tuple(
            t._replace(block=t.block._replace(owner=t.block.owner ^ 1)) for t in step.sends
        )
        ranks[rank] = change_step(ranks[rank], 1, sends=sends)
    with pytest.raises(PlanError):
        check_plan(plan.problem, ranks)


def test_part_of_a_plan_is_refused() -> None:
    """What one rank does says nothing about the whole."""
    plan = plan_attention(
        world_size=4, tokens=8, heads_q=1, heads_kv=1, head_dim=1, strategy="q", rank=2
    )
    with pytest.raises(ConfigError, match="all 4 ranks"):
        plan.check()
