"""The numbers contract of the reductions: order, one rounding, special values, denormals."""

import math

import pytest
import torch

import tokenweave
from tests.dist import fused_cases
from tests.dist.fused_cases import DTYPES, EPS, Case
from tokenfabric.testing.spawn import run_ranks
from tokenfabric.testing.tolerance import assert_same_bits, ulp_distance
from tokenfabric.world import World

ALGORITHMS = ("one_shot", "two_shot")


def fused(
    world: World, x: torch.Tensor, residual: torch.Tensor | None, algorithm: str
) -> tuple[torch.Tensor, torch.Tensor]:
    weight = torch.ones(x.shape[-1], dtype=x.dtype)
    return tokenweave.allreduce_rmsnorm(
        x, residual, weight, world=world, eps=EPS, algorithm=algorithm
    )


def _rank_order(world: World, algorithm: str) -> None:
    # Each order of these gives another fp32 sum: 1e8 swallows 1.
    values = (1e8, 1.0, -1e8, 1.0)
    in_rank_order = torch.tensor([1e8]) + 1.0 - 1e8 + 1.0
    assert in_rank_order.item() == 1.0
    x = torch.full((5, 40), values[world.rank])
    assert_same_bits(
        tokenweave.all_reduce(x, world=world, algorithm=algorithm),
        in_rank_order.expand_as(x),
        what="fp32 sum",
    )
    # In bf16 every partial rounding would swallow a 0.5; one rounding at the end keeps their sum.
    values = (256.0, 0.5, 0.5, 1.0)
    x = torch.full((5, 40), values[world.rank], dtype=torch.bfloat16)
    total = tokenweave.all_reduce(x, world=world, algorithm=algorithm)
    assert_same_bits(total, torch.full_like(x, 258.0), what="bf16 sum")


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_sums_are_taken_in_rank_order_in_fp32_and_rounded_once(algorithm: str) -> None:
    """Values chosen so that any other order or an extra rounding gives another result."""
    run_ranks(_rank_order, 4, algorithm)


def _rank_sum_is_rounded_before_the_residual(world: World) -> None:
    # 256 + 1 lies between two bf16 neighbours and goes to the even one, 256; so it does again with
    # the residual. Without the rounding in between the result would be 258.
    x = torch.full((1, 16), (256.0, 1.0)[world.rank], dtype=torch.bfloat16)
    residual = torch.full((1, 16), 1.0, dtype=torch.bfloat16)
    _, new_residual = fused(world, x, residual, "auto")
    assert_same_bits(new_residual, torch.full_like(x, 256.0), what="residual")


def test_the_sum_is_rounded_to_bf16_before_the_residual_is_added() -> None:
    """The reduced value exists in the activation dtype, as where hardware returns it so."""
    run_ranks(_rank_sum_is_rounded_before_the_residual, 2)


SPECIAL_ROWS = {
    "zeros": (0.0, 0.0),
    "minus zeros": (-0.0, -0.0),
    "nan in rank 0": (math.nan, 1.0),
    "nan in rank 1": (1.0, math.nan),
    "inf": (math.inf, 1.0),
    "-inf": (1.0, -math.inf),
    "inf - inf": (math.inf, -math.inf),
    "largest finite": (3.3e38, -1e38),
    "overflow of the sum": (3e38, 3e38),
    "squares overflow": (1e30, 1e30),
    "denormal": (1e-40, 3e-40),
    "denormal squares": (1e-22, 1e-22),
    "cancelled": (1234.5, -1234.5),
}


def _rank_special_values(world: World, dtype_name: str) -> list[torch.Tensor]:
    """Rows of special values between ordinary ones; every row equals the contract in fp32."""
    dtype = DTYPES[dtype_name]
    case = Case(tokens=2 * len(SPECIAL_ROWS) + 1, hidden=72, dtype=dtype_name)
    inputs = fused_cases.make_inputs(case, world.size, 3)
    assert inputs.residual is not None
    for index, values in enumerate(SPECIAL_ROWS.values()):
        for partial, value in zip(inputs.partials, values, strict=True):
            # One element, or all of them: both the lane and the whole row must behave.
            row = partial[2 * index + 1]
            row[:] = value if index % 2 else torch.where(torch.arange(72) == 41, value, row)
        inputs.residual[2 * index + 1] = 0.0
    s = inputs.partials[0].float() + inputs.partials[1].float()
    s = s.to(dtype).float() + inputs.residual.float()
    contract_residual = s.to(dtype)
    scale = 1.0 / torch.sqrt(s.square().mean(dim=-1, keepdim=True) + EPS)
    contract_normed = (s * scale).to(dtype)
    results = []
    for algorithm in ALGORITHMS:
        x = inputs.partials[world.rank].clone()
        normed, residual = fused(world, x, inputs.residual, algorithm)
        names = [f"{algorithm}, row {name!r}" for name in SPECIAL_ROWS]
        for index, name in enumerate(names):
            row = 2 * index + 1
            assert ulp_distance(residual[row], contract_residual[row]).max() == 0, name
            # A few fp32 roundings in the mean shift the result by at most a step or two.
            assert ulp_distance(normed[row], contract_normed[row]).max() <= 2, f"normed, {name}"
        assert torch.isfinite(normed[::2].float()).all(), "an ordinary row was touched"
        assert_same_bits(residual[::2], contract_residual[::2], what="ordinary rows")
        results += [normed.nan_to_num(7.0), residual.nan_to_num(7.0)]
    return results


@pytest.mark.parametrize("dtype_name", DTYPES)
def test_special_values_follow_ieee_and_stay_in_their_row(dtype_name: str) -> None:
    """NaN, infinities, overflow, zeros and denormals, in every instruction set alike."""
    results = [
        run_ranks(_rank_special_values, 2, dtype_name, environment={"TOKENFABRIC_ISA": isa})
        for isa in ("auto", "scalar")
    ]
    first, *others = [rank for result in results for rank in result]
    for other in others:
        for mine, theirs in zip(first, other, strict=True):
            assert_same_bits(theirs, mine)


def _rank_denormals(world: World) -> None:
    smallest = torch.finfo(torch.float32).smallest_normal * 2**-20
    x = torch.full((3, 20), smallest)
    for algorithm in ALGORITHMS:
        total = tokenweave.all_reduce(x, world=world, algorithm=algorithm)
        assert_same_bits(total, torch.full_like(x, 2 * smallest), what=algorithm)
        x16 = torch.full((3, 20), 2e-39, dtype=torch.bfloat16)
        total = tokenweave.all_reduce(x16, world=world, algorithm=algorithm)
        assert_same_bits(total, (x16.float() * 2).bfloat16(), what=algorithm)


@pytest.mark.parametrize("isa", ["auto", "scalar"])
def test_denormals_are_kept(isa: str) -> None:
    """No body flushes denormals to zero."""
    run_ranks(_rank_denormals, 2, environment={"TOKENFABRIC_ISA": isa})
