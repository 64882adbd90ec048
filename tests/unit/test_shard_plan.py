"""Who holds what of a model: every head, column and row is on exactly one rank. No processes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenfabric.errors import ConfigError
from tokenweave.shard_plan import ModelDimensions, ShardPlan, Span, plan_even, plan_shards

# The models that people run, with head counts that 2, 3, 4, 5, ... ranks do and do not divide.
MODELS = {
    "smollm2-135m": ModelDimensions(
        num_query_heads=9, num_kv_heads=3, intermediate_size=1536, vocab_size=49152
    ),
    "llama-3-8b": ModelDimensions(
        num_query_heads=32, num_kv_heads=8, intermediate_size=14336, vocab_size=128256
    ),
    "qwen2-0.5b": ModelDimensions(
        num_query_heads=14, num_kv_heads=2, intermediate_size=4864, vocab_size=151936
    ),
    "multi-query": ModelDimensions(
        num_query_heads=7, num_kv_heads=1, intermediate_size=11008, vocab_size=32001
    ),
}


def sizes(spans: tuple[Span, ...]) -> list[int]:
    return [span.size for span in spans]


def covers_once(spans: tuple[Span, ...], total: int) -> bool:
    return [i for span in spans for i in range(span.start, span.stop)] == list(range(total))


def check_plan(plan: ShardPlan, dimensions: ModelDimensions, num_ranks: int) -> None:
    assert covers_once(plan.query_heads, dimensions.num_query_heads)
    assert covers_once(plan.mlp_columns, dimensions.intermediate_size)
    assert covers_once(plan.vocab_rows, dimensions.vocab_size)
    assert len(plan.kv_heads) == plan.num_ranks == num_ranks
    group_size = dimensions.num_query_heads // dimensions.num_kv_heads
    for query, kv in zip(plan.query_heads, plan.kv_heads, strict=True):
        # Each rank has just the KV heads its query heads read, as many query heads for each.
        read = {head // group_size for head in range(query.start, query.stop)}
        assert read == set(range(kv.start, kv.stop))
        assert query.size % kv.size == 0
        assert kv.size == 1 or query == kv.scaled(group_size)
    if num_ranks <= dimensions.num_kv_heads:
        assert covers_once(plan.kv_heads, dimensions.num_kv_heads)


@pytest.mark.parametrize("dimensions", MODELS.values(), ids=MODELS)
def test_a_known_model_is_dealt_once_for_every_number_of_ranks(dimensions: ModelDimensions) -> None:
    """Every rank count up to the number of query heads gives a complete plan."""
    for num_ranks in range(1, dimensions.num_query_heads + 1):
        check_plan(plan_shards(dimensions, num_ranks), dimensions, num_ranks)


@given(st.data())
def test_any_model_is_dealt_once(data: st.DataObject) -> None:
    """The properties hold for any sizes, not only for those of known models."""
    num_kv_heads = data.draw(st.integers(1, 12))
    group_size = data.draw(st.integers(1, 12))
    num_ranks = data.draw(st.integers(1, num_kv_heads * group_size))
    dimensions = ModelDimensions(
        num_query_heads=num_kv_heads * group_size,
        num_kv_heads=num_kv_heads,
        intermediate_size=data.draw(st.integers(num_ranks, 20_000)),
        vocab_size=data.draw(st.integers(num_ranks, 200_000)),
    )
    check_plan(plan_shards(dimensions, num_ranks), dimensions, num_ranks)


def test_heads_are_dealt_exhaustively_and_near_equally() -> None:
    """No rank has more than one KV group (or, within a group, one query head) above another."""
    for num_kv_heads in range(1, 9):
        for group_size in range(1, 9):
            for num_ranks in range(1, num_kv_heads * group_size + 1):
                dimensions = ModelDimensions(
                    num_query_heads=num_kv_heads * group_size,
                    num_kv_heads=num_kv_heads,
                    intermediate_size=num_ranks,
                    vocab_size=num_ranks,
                )
                plan = plan_shards(dimensions, num_ranks)
                check_plan(plan, dimensions, num_ranks)
                if num_ranks <= num_kv_heads:
                    assert max(sizes(plan.kv_heads)) - min(sizes(plan.kv_heads)) <= 1
                    continue
                by_group: dict[int, list[int]] = {}
                for query, kv in zip(plan.query_heads, plan.kv_heads, strict=True):
                    by_group.setdefault(kv.start, []).append(query.size)
                ranks_of_group = [len(counts) for counts in by_group.values()]
                assert max(ranks_of_group) - min(ranks_of_group) <= 1
                assert all(max(counts) - min(counts) <= 1 for counts in by_group.values())


@pytest.mark.parametrize(
    ("num_ranks", "query", "kv"),
    [
        (1, [9], [3]),
        (2, [6, 3], [2, 1]),
        (3, [3, 3, 3], [1, 1, 1]),
        (4, [2, 1, 3, 3], [1, 1, 1, 1]),
        (6, [2, 1, 2, 1, 2, 1], [1, 1, 1, 1, 1, 1]),
        (9, [1] * 9, [1] * 9),
    ],
)
def test_smollm2_is_dealt_as_documented(num_ranks: int, query: list[int], kv: list[int]) -> None:
    """Whole KV groups first; beyond three ranks a KV head is on several of them."""
    plan = plan_shards(MODELS["smollm2-135m"], num_ranks)
    assert sizes(plan.query_heads) == query
    assert sizes(plan.kv_heads) == kv


@given(st.integers(1, 10_000), st.data())
def test_even_shares_are_near_equal(num_items: int, data: st.DataObject) -> None:
    """A share exceeds the mean by at most 1/16, or by what one item costs."""
    num_ranks = data.draw(st.integers(1, num_items))
    spans = plan_even(num_items, num_ranks, what="items")
    assert covers_once(spans, num_items)
    assert min(sizes(spans)) >= 1
    limit = max(num_items / num_ranks * (1 + 1 / 16), -(-num_items // num_ranks))
    assert max(sizes(spans)) <= limit


@pytest.mark.parametrize(
    ("num_items", "num_ranks", "shares"),
    [
        (1536, 2, [768, 768]),
        (1536, 5, [320, 320, 320, 320, 256]),
        (11008, 3, [3712, 3648, 3648]),
        (49152, 2, [24576, 24576]),
        (101, 2, [51, 50]),
        (80, 3, [28, 28, 24]),
    ],
)
def test_shares_are_aligned_where_that_is_fair(
    num_items: int, num_ranks: int, shares: list[int]
) -> None:
    """Granules of up to 64, given up for balance."""
    assert sizes(plan_even(num_items, num_ranks, what="columns")) == shares


@pytest.mark.parametrize(
    ("width", "num_ranks", "shares"),
    [
        (14336, 3, [4800, 4800, 4736]),
        (768, 5, [160, 160, 160, 160, 128]),
        (40, 3, [16, 16, 8]),  # 14 14 12 would be fairer
        (24, 4, [8, 8, 4, 4]),  # not enough for 8 each
        (37, 2, [19, 18]),
    ],
)
def test_shares_of_experts_are_aligned(width: int, num_ranks: int, shares: list[int]) -> None:
    """Multiples of 8 wherever every rank can have that; all experts are cut alike."""
    dimensions = ModelDimensions(
        num_query_heads=num_ranks, num_kv_heads=1, intermediate_size=num_ranks,
        vocab_size=num_ranks, expert_intermediate_size=width,
    )  # fmt: skip
    plan = plan_shards(dimensions, num_ranks)
    assert covers_once(plan.expert_columns, width)
    assert sizes(plan.expert_columns) == shares
    assert f"expert columns 0-{shares[0] - 1} ({shares[0]})" in plan.of_rank(0)


@given(st.integers(1, 6), st.integers(1, 64), st.data())
def test_a_least_granule_divides_all_shares(
    log_granule: int, num_granules: int, data: st.DataObject
) -> None:
    """Where it divides the items and there is one for every rank."""
    granule = 2**log_granule
    num_ranks = data.draw(st.integers(1, num_granules))
    num_items = granule * num_granules
    spans = plan_even(num_items, num_ranks, what="items", least_granule=granule)
    assert covers_once(spans, num_items)
    assert all(size % granule == 0 and size > 0 for size in sizes(spans))


def test_too_many_ranks_are_refused_with_value_and_limit() -> None:
    """The error says how many ranks there are and how many there may be."""
    smollm2 = MODELS["smollm2-135m"]
    with pytest.raises(ConfigError, match=r"9 query heads cannot be dealt to 10 ranks.*at most 9"):
        plan_shards(smollm2, 10)
    with pytest.raises(ConfigError, match="3 items cannot be dealt to 4 ranks"):
        plan_even(3, 4, what="items")


@pytest.mark.parametrize("num_ranks", [0, -1])
def test_no_ranks_are_refused(num_ranks: int) -> None:
    """A world has at least one rank."""
    with pytest.raises(ConfigError, match=f"at least 1; got {num_ranks}"):
        plan_shards(MODELS["smollm2-135m"], num_ranks)


def test_heads_without_whole_groups_are_refused() -> None:
    """9 query heads over 2 KV heads have no meaning."""
    odd = ModelDimensions(num_query_heads=9, num_kv_heads=2, intermediate_size=8, vocab_size=8)
    with pytest.raises(ConfigError, match="9 query heads do not form whole groups over 2 KV heads"):
        plan_shards(odd, 1)


def test_a_plan_explains_itself() -> None:
    """One line per rank with ranges and counts."""
    text = plan_shards(MODELS["smollm2-135m"], 2).explain()
    assert text.splitlines()[0] == (
        "rank 0: query heads 0-5 (6), KV heads 0-1 (2), MLP columns 0-767 (768), "
        "vocabulary rows 0-24575 (24576)"
    )
