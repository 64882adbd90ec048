"""Plans of reductions over several hosts: every row has its owners, and bytes are what moves."""

from dataclasses import replace
from itertools import chain, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenweave.host_plan import (
    MESSAGE_BYTES,
    HierarchicalPlan,
    plan_forward_pass,
    plan_hierarchical,
)
from tokenweave.plan import split_rows

PLANS = st.builds(
    plan_hierarchical,
    num_tokens=st.integers(0, 5000),
    hidden=st.integers(1, 8192),
    element_size=st.sampled_from([2, 4]),
    num_hosts=st.integers(2, 9),
    local_size=st.integers(1, 8),
    output=st.sampled_from(["private", "own_rows"]),
    residual_layout=st.sampled_from(["replicated", "row_sharded"]),
    has_residual=st.booleans(),
)


def ranks(plan: HierarchicalPlan) -> range:
    return range(plan.num_hosts * plan.local_size)


@given(PLANS)
def test_blocks_and_rails_deal_every_row_once(plan: HierarchicalPlan) -> None:
    """Blocks follow each other; in a host, each row of a block has one rank that sums it."""
    edges = [start for start, _ in plan.blocks] + [plan.num_tokens]
    assert list(plan.blocks) == list(pairwise(edges))
    rails = [plan.rail_rows(local_rank) for local_rank in range(plan.local_size)]
    rows = chain.from_iterable(range(*piece) for rail in rails for piece in rail)
    assert sorted(rows) == list(range(plan.num_tokens))


@given(PLANS)
def test_rows_are_added_by_the_ranks_that_the_exchange_says(plan: HierarchicalPlan) -> None:
    """scatter: by the rank that split_rows says. gather: sums once a host, partial sums by all."""
    added = [plan.added_rows(rank) for rank in ranks(plan)]
    if plan.exchange == "scatter":
        assert added == list(split_rows(plan.num_tokens, len(added)))
    elif plan.travels == "partials":
        assert added == [(0, plan.num_tokens)] * len(added)
    else:
        of_host = list(split_rows(plan.num_tokens, plan.local_size))
        assert added == of_host * plan.num_hosts


@given(PLANS, PLANS)
def test_what_travels_hangs_on_the_world_and_the_dtype_alone(
    plan: HierarchicalPlan, other: HierarchicalPlan
) -> None:
    """It decides the order of additions, which no number of rows may change."""
    assert (plan.travels == "partials") == (plan.local_size * plan.element_size <= 4)
    if (plan.local_size, plan.element_size) == (other.local_size, other.element_size):
        assert plan.travels == other.travels


@given(PLANS)
def test_what_callers_own_is_what_split_rows_deals(plan: HierarchicalPlan) -> None:
    """A row-sharded residual and a reduce-scatter keep the contract of one host."""
    if plan.output == "own_rows" or plan.residual_layout == "row_sharded":
        assert plan.exchange == "scatter"
        assert plan.residual_layout != "row_sharded" or plan.finishes_once


def first_message_bytes(plan: HierarchicalPlan, exchange: str) -> int:
    """Return what all ranks send of one copy of all rows before they are added."""
    size = plan.element_size * plan.local_size if plan.travels == "partials" else 4
    copies = plan.num_hosts if exchange == "gather" else 1
    return copies * (plan.num_hosts - 1) * plan.num_tokens * plan.hidden * size


@given(PLANS)
def test_bytes_are_those_of_rows_that_go_to_other_hosts(plan: HierarchicalPlan) -> None:
    """What all ranks send, row by row: what is added to its adders, results to the others."""
    others, sent = plan.num_hosts - 1, sum(plan.bytes_sent(rank) for rank in ranks(plan))
    results = others * plan.num_tokens * plan.hidden * plan.element_size
    if plan.exchange == "gather" or plan.output == "own_rows":
        results = 0
    assert sent == first_message_bytes(plan, plan.exchange) + results


@given(PLANS)
def test_a_second_message_is_taken_only_for_what_it_saves(plan: HierarchicalPlan) -> None:
    """Where both are allowed, the choice is the cheaper one for the rank with most rows."""
    if plan.output == "own_rows" or plan.residual_layout == "row_sharded":
        return
    rail = [stop - start for start, stop in replace(plan, exchange="scatter").rail_rows(0)]
    others = plan.num_hosts - 1
    if plan.travels == "partials":
        blocks = replace(plan, exchange="scatter").blocks
        first = (plan.num_tokens - blocks[0][1]) * plan.element_size
        gather_bytes = others * plan.num_tokens * plan.hidden * plan.element_size
    else:
        first = (sum(rail) - rail[0]) * 4
        most = -(-plan.num_tokens // plan.local_size)
        gather_bytes = others * most * plan.hidden * 4
    scatter_bytes = (first + others * rail[0] * plan.element_size) * plan.hidden
    assert (plan.exchange == "scatter") == (gather_bytes - scatter_bytes > MESSAGE_BYTES)


def test_examples() -> None:
    """Two hosts of two: a token in one message, a prompt in two, with the residual sharded."""
    sizes = {"hidden": 4096, "element_size": 2, "num_hosts": 2, "local_size": 2}
    token = plan_hierarchical(num_tokens=1, **sizes)
    assert token.exchange == "gather"
    assert token.travels == "partials"
    assert [token.bytes_sent(rank) for rank in range(4)] == [8192] * 4
    assert plan_forward_pass(num_tokens=1, **sizes) == token
    prompt = plan_hierarchical(num_tokens=1024, **sizes)
    assert prompt.exchange == "scatter"
    assert prompt.blocks == ((0, 512), (512, 1024))
    assert prompt.rail_rows(1) == ((256, 512), (768, 1024))
    assert prompt.bytes_sent(0) == (512 + 256) * 4096 * 2
    assert plan_forward_pass(num_tokens=1024, **sizes).residual_layout == "row_sharded"
    assert "2 hosts x 2 ranks" in prompt.explain()
    # Two ranks on two hosts: as many bytes either way, but sharded each finishes half the rows.
    pair = sizes | {"local_size": 1}
    assert plan_hierarchical(num_tokens=1024, **pair).exchange == "gather"
    assert plan_forward_pass(num_tokens=1024, **pair).residual_layout == "row_sharded"
    assert plan_forward_pass(num_tokens=16, **pair).residual_layout == "replicated"
    assert "partial sums" in prompt.explain()
    assert "scatter" in prompt.explain()
    wide = plan_hierarchical(num_tokens=1024, **sizes | {"element_size": 4})
    assert wide.travels == "sums"
    assert wide.bytes_sent(0) == (256 + 256) * 4096 * 4


def test_a_shared_output_is_refused() -> None:
    """No memory is mapped by ranks of two hosts."""
    with pytest.raises(ValueError, match="the ranks lie on 2"):
        plan_hierarchical(
            num_tokens=1, hidden=8, element_size=4, num_hosts=2, local_size=1, output="shared"
        )
