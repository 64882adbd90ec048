"""Plans of reductions over several hosts: every row has its owners, and bytes are what moves."""

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
def test_every_row_is_added_once_in_the_world_or_once_a_host(plan: HierarchicalPlan) -> None:
    """gather: by one rank of each host. scatter: by the rank that split_rows says."""
    added = [plan.added_rows(rank) for rank in ranks(plan)]
    if plan.exchange == "scatter":
        assert added == list(split_rows(plan.num_tokens, len(added)))
    else:
        of_host = list(split_rows(plan.num_tokens, plan.local_size))
        assert added == of_host * plan.num_hosts


@given(PLANS)
def test_what_callers_own_is_what_split_rows_deals(plan: HierarchicalPlan) -> None:
    """A row-sharded residual and a reduce-scatter keep the contract of one host."""
    if plan.output == "own_rows" or plan.residual_layout == "row_sharded":
        assert plan.exchange == "scatter"
        assert plan.residual_layout != "row_sharded" or plan.finishes_once


@given(PLANS)
def test_bytes_are_those_of_rows_that_go_to_other_hosts(plan: HierarchicalPlan) -> None:
    """What all ranks send, counted row by row: fp32 sums to their adders, results to the others."""
    others, sent = plan.num_hosts - 1, sum(plan.bytes_sent(rank) for rank in ranks(plan))
    elements = plan.num_tokens * plan.hidden
    if plan.exchange == "gather":
        assert sent == plan.num_hosts * others * elements * 4
    else:
        results = 0 if plan.output == "own_rows" else others * elements * plan.element_size
        assert sent == others * elements * 4 + results


@given(PLANS)
def test_a_second_message_is_taken_only_for_what_it_saves(plan: HierarchicalPlan) -> None:
    """Where both are allowed, the choice is the cheaper one for the rank with most rows."""
    if plan.output == "own_rows" or plan.residual_layout == "row_sharded":
        return
    rows = plan.rail_rows(0)
    total = sum(stop - start for start, stop in rows)
    gather_bytes = (plan.num_hosts - 1) * total * plan.hidden * 4
    if plan.exchange == "scatter":
        assert gather_bytes - plan.bytes_sent(0) > MESSAGE_BYTES
    else:
        own = split_rows(plan.num_tokens, len(ranks(plan)))[0]
        count = own[1] - own[0]
        returned = (plan.num_hosts - 1) * count * plan.element_size
        scatter_bytes = ((total - count) * 4 + returned) * plan.hidden
        assert gather_bytes - scatter_bytes <= MESSAGE_BYTES


def test_examples() -> None:
    """Two hosts of two: a token in one message, a prompt in two, with the residual sharded."""
    sizes = {"hidden": 4096, "element_size": 2, "num_hosts": 2, "local_size": 2}
    token = plan_hierarchical(num_tokens=1, **sizes)
    assert token.exchange == "gather"
    assert [token.bytes_sent(rank) for rank in range(4)] == [16384, 0, 16384, 0]
    assert plan_forward_pass(num_tokens=1, **sizes) == token
    prompt = plan_hierarchical(num_tokens=1024, **sizes)
    assert prompt.exchange == "scatter"
    assert prompt.blocks == ((0, 512), (512, 1024))
    assert prompt.rail_rows(1) == ((256, 512), (768, 1024))
    assert prompt.bytes_sent(0) == 256 * 4096 * (4 + 2)
    assert plan_forward_pass(num_tokens=1024, **sizes).residual_layout == "row_sharded"
    assert "2 hosts x 2 ranks" in prompt.explain()
    assert "scatter" in prompt.explain()


def test_a_shared_output_is_refused() -> None:
    """No memory is mapped by ranks of two hosts."""
    with pytest.raises(ValueError, match="the ranks lie on 2"):
        plan_hierarchical(
            num_tokens=1, hidden=8, element_size=4, num_hosts=2, local_size=1, output="shared"
        )
