"""Reduction plans: rows dealt once, blocks that fit, refusals. Pure."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenweave.plan import (
    ONE_SHOT_MAX_BYTES,
    ONE_SHOT_MAX_BYTES_REPLICATED,
    plan_reduction,
    plan_residual_layout,
    split_rows,
)

SHAPES = {
    "num_tokens": st.integers(0, 100_000),
    "hidden": st.integers(1, 20_000),
    "element_size": st.sampled_from([2, 4]),
    "world_size": st.integers(1, 16),
}
STAGING_BYTES = 4 << 20


@given(num_rows=st.integers(0, 10_000), world_size=st.integers(1, 64))
def test_every_row_has_one_owner(num_rows: int, world_size: int) -> None:
    """Contiguous, in rank order, sizes within one of each other."""
    parts = split_rows(num_rows, world_size)
    assert len(parts) == world_size
    assert parts[0][0] == 0
    assert parts[-1][1] == num_rows
    assert all(left[1] == right[0] for left, right in pairwise(parts))
    sizes = [stop - start for start, stop in parts]
    assert max(sizes) - min(sizes) <= 1
    assert sizes == sorted(sizes, reverse=True)


@given(**SHAPES)
def test_a_block_fits_the_staging_slot(
    num_tokens: int, hidden: int, element_size: int, world_size: int
) -> None:
    """What passes through a slot at a time is at least a row and at most the slot."""
    row_bytes = hidden * element_size
    for layout in ("replicated", "row_sharded"):
        plan = plan_reduction(
            num_tokens=num_tokens,
            hidden=hidden,
            element_size=element_size,
            world_size=world_size,
            staging_bytes=STAGING_BYTES,
            residual_layout=layout,
        )
        rows = plan.block_rows * (1 if plan.algorithm == "one_shot" else max(world_size - 1, 2))
        assert plan.block_rows >= 1
        assert world_size == 1 or rows * row_bytes <= STAGING_BYTES


def plan(**changes: object) -> object:
    arguments = {
        "num_tokens": 64,
        "hidden": 512,
        "element_size": 2,
        "world_size": 2,
        "staging_bytes": STAGING_BYTES,
    }
    return plan_reduction(**(arguments | changes))  # type: ignore[arg-type]


def test_small_sums_are_reduced_everywhere_and_large_ones_once() -> None:
    """The boundary of one-shot is where it is documented to be."""
    row_bytes = 512 * 2
    for has_residual, limit in (
        (False, ONE_SHOT_MAX_BYTES),
        (True, ONE_SHOT_MAX_BYTES_REPLICATED // 2),
    ):
        rows = limit // row_bytes
        at_limit = plan(num_tokens=rows, has_residual=has_residual)
        above = plan(num_tokens=rows + 1, has_residual=has_residual)
        assert at_limit.algorithm == "one_shot"  # type: ignore[attr-defined]
        assert above.algorithm == "two_shot"  # type: ignore[attr-defined]
    assert plan(num_tokens=1, residual_layout="row_sharded").algorithm == "two_shot"  # type: ignore[attr-defined]
    assert "asked for" in plan(algorithm="two_shot").explain()  # type: ignore[attr-defined]


def test_a_residual_stays_with_its_rows_owners_where_two_shot_is_cheaper() -> None:
    sizes = {"hidden": 512, "element_size": 2, "is_oversubscribed": False}
    at_limit = ONE_SHOT_MAX_BYTES // 1024
    assert plan_residual_layout(num_tokens=at_limit, world_size=2, **sizes) == "replicated"
    assert plan_residual_layout(num_tokens=at_limit + 1, world_size=2, **sizes) == "row_sharded"
    assert plan_residual_layout(num_tokens=9999, world_size=1, **sizes) == "replicated"
    crowded = sizes | {"is_oversubscribed": True}
    assert plan_residual_layout(num_tokens=at_limit + 1, world_size=2, **crowded) == "replicated"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"algorithm": "one_shot", "residual_layout": "row_sharded"}, "row_sharded residual"),
        (
            {"algorithm": "one_shot", "output": "shared", "residual_layout": "row_sharded"},
            "one_shot",
        ),
        ({"output": "shared"}, "keeps the residual row_sharded"),
        ({"hidden": 4 << 20}, "bytes of staging"),
    ],
)
def test_impossible_wishes_are_refused(changes: dict[str, object], message: str) -> None:
    """An algorithm that cannot give the wanted layout is an error, not another algorithm."""
    with pytest.raises(ValueError, match=message):
        plan(**changes)
