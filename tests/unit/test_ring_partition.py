"""Tokens dealt to ranks: every one once, balanced, and exactly back. Pure."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.ring_cases import PARTITIONS
from tokenfabric.errors import ConfigError
from tokenring.partition import Layout, partition_tokens

LENGTHS = st.lists(st.integers(0, 50), min_size=1, max_size=4)


@given(LENGTHS, st.integers(1, 9), st.sampled_from(PARTITIONS))
def test_unshard_undoes_shard(lengths: list[int], world_size: int, partition: str) -> None:
    """Any lengths on any number of ranks; more ranks than tokens included."""
    layout = partition_tokens(lengths, world_size, partition)  # type: ignore[arg-type]
    tokens = list(range(sum(lengths)))
    shards = [[tokens[i] for i in layout.shard_indices(rank)] for rank in range(world_size)]
    assert [len(shard) for shard in shards] == [layout.num_rows(r) for r in range(world_size)]
    together = [token for shard in shards for token in shard]
    assert [together[i] for i in layout.unshard_indices()] == tokens


@given(LENGTHS, st.integers(1, 9), st.sampled_from(PARTITIONS))
def test_rows_differ_by_at_most_one(lengths: list[int], world_size: int, partition: str) -> None:
    """Also when the odd tokens of several sequences come together."""
    layout = partition_tokens(lengths, world_size, partition)  # type: ignore[arg-type]
    rows = [layout.num_rows(rank) for rank in range(world_size)]
    assert max(rows) - min(rows) <= 1


@given(LENGTHS, st.integers(0, 30), st.integers(1, 9), st.sampled_from(PARTITIONS))
def test_positions_begin_at_the_start(
    lengths: list[int], start: int, world_size: int, partition: str
) -> None:
    """Each sequence's positions are start, start + 1, .. over all ranks."""
    starts = [start + index for index in range(len(lengths))]
    layout = partition_tokens(lengths, world_size, partition, starts=starts)  # type: ignore[arg-type]
    positions = sorted(p for rank in range(world_size) for p in layout.positions(rank))
    expected = [s + i for s, n in zip(starts, lengths, strict=True) for i in range(n)]
    assert positions == sorted(expected)


@pytest.mark.parametrize(
    ("partition", "expected"),
    [
        ("contiguous", [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]),
        ("zigzag", [[0, 1, 2, 8, 9], [3, 4, 5, 6, 7]]),
        ("striped", [[0, 2, 4, 6, 8], [1, 3, 5, 7, 9]]),
    ],
)
def test_example(partition: str, expected: list[list[int]]) -> None:
    """The module's example."""
    layout = partition_tokens(10, 2, partition)  # type: ignore[arg-type]
    assert [layout.positions(rank) for rank in range(2)] == expected


@given(st.lists(st.integers(0, 9), min_size=1, max_size=6))
def test_given_lengths_are_kept(rank_lengths: list[int]) -> None:
    """Explicit contiguous shares, zero among them."""
    layout = partition_tokens(
        sum(rank_lengths), len(rank_lengths), "contiguous", rank_lengths=rank_lengths
    )
    assert [layout.num_rows(r) for r in range(len(rank_lengths))] == rank_lengths
    assert [i for r in range(len(rank_lengths)) for i in layout.shard_indices(r)] == list(
        range(sum(rank_lengths))
    )


@given(LENGTHS, st.integers(0, 9), st.integers(1, 5), st.sampled_from(PARTITIONS))
def test_cache_followed_by_new_tokens(
    lengths: list[int], num_new: int, world_size: int, partition: str
) -> None:
    """Every rank appends its new rows to its part of the cache; together they are all positions."""
    cache = partition_tokens(lengths, world_size, partition)  # type: ignore[arg-type]
    new = partition_tokens([num_new] * len(lengths), world_size, partition, starts=lengths)  # type: ignore[arg-type]
    both = cache.followed_by(new)
    assert both.lengths == tuple(length + num_new for length in lengths)
    for rank in range(world_size):
        assert both.positions(rank) == cache.positions(rank) + new.positions(rank)
    assert sorted(both.unshard_indices()) == list(range(sum(both.lengths)))


def layout_of(lengths: int, world_size: int, starts: list[int] | None = None) -> Layout:
    return partition_tokens(lengths, world_size, starts=starts)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"lengths": -1, "world_size": 2}, "length -1 is negative"),
        ({"lengths": 4, "world_size": 0}, "world_size is 0"),
        ({"lengths": 4, "world_size": 2, "partition": "spiral"}, "contiguous, zigzag, striped"),
        ({"lengths": 4, "world_size": 2, "starts": [1, 2]}, "2 starts for 1 sequences"),
        ({"lengths": 4, "world_size": 2, "starts": [-1]}, "start -1 is negative"),
        ({"lengths": 4, "world_size": 2, "rank_lengths": [2, 2]}, "go with contiguous"),
        (
            {"lengths": 4, "world_size": 2, "partition": "contiguous", "rank_lengths": [2, 3]},
            "sum to 4",
        ),
        (
            {"lengths": 4, "world_size": 2, "partition": "contiguous", "rank_lengths": [5, -1]},
            "negative",
        ),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, object], message: str) -> None:
    """By name, with what to do."""
    with pytest.raises(ConfigError, match=message):
        partition_tokens(**arguments)  # type: ignore[arg-type]


def test_new_tokens_that_do_not_follow_are_refused() -> None:
    """A gap between cache and new tokens is a mistake of the caller."""
    with pytest.raises(ConfigError, match="starts= the lengths so far"):
        layout_of(8, 2).followed_by(layout_of(2, 2, [9]))
