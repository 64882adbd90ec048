"""The engine against fp64, on virtual ranks: all strategies, partitions, masks; seeded mistakes."""

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.unit.ring_virtual import (
    NAMES,
    Case,
    by_torch,
    map_steps,
    on_one_device,
    on_virtual_ranks,
    with_change,
)
from tokenfabric.testing.tolerance import assert_same_nonfinite
from tokenring.blocks import Band, RankPlan
from tokenring.movement import STRATEGIES
from tokenring.plan import RingPlan

FIXED = [name for name in STRATEGIES if name != "grid"]


def check(case: Case, **how: Any) -> None:
    """Compare with fp64; the bar is twice the error of one device in the same dtype."""
    got = on_virtual_ranks(case, **how)
    exact = on_one_device(case, torch.float64)
    baseline = on_one_device(case, torch.float32) if case.softcap else by_torch(case)
    for name in NAMES:
        assert_within_bar(case, name, got[name], exact[name], baseline[name])


def assert_within_bar(
    case: Case, name: str, got: torch.Tensor, exact: torch.Tensor, baseline: torch.Tensor
) -> None:
    """Check the largest error of a tensor, and the root of its mean square.

    A gradient is a difference of sums of 8 and 16 products of numbers about 1, and may be 0 itself:
    hence some fp32 roundings of 1 besides. They also cover that maxima over few elements scatter.
    """
    assert_same_nonfinite(got, exact, what=f"{case}: {name}")
    finite = torch.isfinite(exact)
    error, usual = ((x.double() - exact)[finite].abs() for x in (got, baseline))
    rounding = torch.finfo(torch.float32).eps * max(1.0, float(exact[finite].abs().max()))
    for measure, factor in ((torch.max, 2.0), (root_mean_square, 1.5)):
        found, allowed = float(measure(error)), factor * float(measure(usual)) + 8 * rounding
        assert found <= allowed, f"{case}: {name} is off by {found:.3g} of {allowed:.3g}"


def root_mean_square(x: torch.Tensor) -> torch.Tensor:
    return x.square().mean().sqrt()


@pytest.mark.parametrize("strategy", FIXED)
@pytest.mark.parametrize("partition", ["contiguous", "zigzag", "striped"])
def test_every_strategy_partition_and_mask_is_exact(strategy: str, partition: str) -> None:
    """World sizes 1 to 8, full and causal and windowed, MHA, GQA and MQA."""
    draw = random.Random(f"{strategy}{partition}")
    for world_size in (1, 2, 3, 4, 5, 6, 7, 8):
        causal, window = draw.choice([(False, None), (True, None), (True, 7)])
        heads_q, heads_kv = draw.choice([(4, 4), (6, 2), (4, 1)])
        check(
            Case(
                world_size=world_size,
                tokens=draw.choice([1, world_size - 1 or 2, world_size + 1, 37, 64]),
                heads_q=heads_q,
                heads_kv=heads_kv,
                partition=partition,
                strategy=strategy,
                causal=causal,
                window=window,
                seed=world_size,
            )
        )


@pytest.mark.parametrize("strategy", ["q_push", "kv_bidirectional", "ulysses"])
@pytest.mark.parametrize("world_size", [2, 8])
def test_the_error_of_bf16_does_not_grow_with_the_ranks(strategy: str, world_size: int) -> None:
    check(Case(world_size=world_size, tokens=128, strategy=strategy, dtype=torch.bfloat16))


def test_sixty_four_ranks_are_as_exact() -> None:
    check(Case(world_size=64, tokens=200, strategy="q_push", dtype=torch.bfloat16))


def test_softcap_and_auto() -> None:
    check(Case(world_size=4, softcap=3.0, strategy="auto"))


def test_results_do_not_depend_on_who_goes_first() -> None:
    """The same bits in any order of turns: every merge has a fixed order."""
    case = Case(world_size=5, tokens=61, strategy="q")
    first = on_virtual_ranks(case)
    for seed in range(4):
        turns = random.Random(seed)
        again = on_virtual_ranks(case, pick=turns.choice)
        for name in NAMES:
            assert torch.equal(first[name], again[name])


def wrong_return_distance(plan: RingPlan) -> Sequence[RankPlan]:
    def change(step: Any) -> Any:
        sends = tuple(
            t._replace(dst=(t.dst + 1) % 3 if (t.dst + 1) % 3 != t.src else t.dst - 1)
            if t.block.kind in ("out", "dq")
            else t
            for t in step.sends
        )
        return step._replace(sends=sends)

    return with_change(plan, 1, lambda part: map_steps(part, change))


def mask_off_by_one(plan: RingPlan) -> Sequence[RankPlan]:
    def change(step: Any) -> Any:
        computes = tuple(
            c._replace(band=Band(c.band.lower, c.band.upper + 1))
            if c.band.upper is not None and c.q_rows > 1
            else c
            for c in step.computes
        )
        return step._replace(computes=computes)

    return with_change(plan, 2, lambda part: map_steps(part, change))


def missing_merge(plan: RingPlan) -> Sequence[RankPlan]:
    def change(step: Any) -> Any:
        merges = tuple(
            m._replace(segments=tuple(s._replace(inputs=s.inputs[:-1]) for s in m.segments))
            for m in step.merges
        )
        return step._replace(merges=merges)

    return with_change(plan, 0, lambda part: map_steps(part, change))


@pytest.mark.parametrize("mistake", [wrong_return_distance, mask_off_by_one, missing_merge])
def test_a_mistake_in_a_plan_is_not_survived(
    mistake: Callable[[RingPlan], Sequence[RankPlan]],
) -> None:
    with pytest.raises((AssertionError, RuntimeError)):
        check(Case(world_size=3, tokens=48, strategy="q"), mutate=mistake)


def test_gradients_rounded_in_transit_are_found() -> None:
    """dk added up in bf16 on its way round a ring of 32 is beyond the bar."""
    case = Case(world_size=32, tokens=256, heads_kv=4, strategy="kv", dtype=torch.bfloat16)
    check(case)
    with pytest.raises(AssertionError, match=r"d[kv] is off"):
        check(case, mutate=halved_dkv, wire=lambda wire: replace(wire, dkv=torch.bfloat16))


def halved_dkv(plan: RingPlan) -> Sequence[RankPlan]:
    """Return plans whose dkv messages have half the bytes, as bf16 has."""

    def smaller(t: Any) -> Any:
        return t._replace(num_bytes=t.num_bytes // 2) if t.block.kind == "dkv" else t

    def change(step: Any) -> Any:
        arrivals = tuple(a._replace(transfer=smaller(a.transfer)) for a in step.arrivals)
        return step._replace(sends=tuple(map(smaller, step.sends)), arrivals=arrivals)

    return [map_steps(part, change) for part in plan.ranks]
