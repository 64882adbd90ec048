"""Plans of decoding: each key that a query sees once, on the rank that has it, ranks balanced."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenfabric.errors import ConfigError
from tokenring.decode_plan import (
    Attend,
    DecodeGroup,
    deal_tokens,
    decode_bytes,
    empty_layout,
    extend_cache,
    plan_decode,
    rows_of_sequences,
)
from tokenring.mask import Mask, make_mask
from tokenring.partition import Layout, partition_tokens

PARTITIONS = ["contiguous", "zigzag", "striped"]


@st.composite
def caches(draw: st.DrawFn) -> tuple[Layout, int]:
    """Return a cache after prefills and decode steps, and how many tokens the last step added."""
    world_size = draw(st.integers(1, 5))
    num_sequences = draw(st.integers(1, 3))
    cache = empty_layout(num_sequences, world_size)
    for _ in range(draw(st.integers(0, 2))):
        lengths = draw(st.lists(st.integers(0, 13), min_size=num_sequences, max_size=num_sequences))
        ends = [a + b for a, b in zip(cache.starts, cache.lengths, strict=True)]
        partition = draw(st.sampled_from(PARTITIONS))
        cache = extend_cache(cache, partition_tokens(lengths, world_size, partition, starts=ends))
    num_new, block = draw(st.integers(1, 3)), draw(st.integers(1, 5))
    for _ in range(draw(st.integers(1, 6))):
        cache = extend_cache(cache, deal_tokens(cache, [num_new] * num_sequences, block))
    return cache, num_new


def held(cache: Layout, rank: int, sequence: int) -> list[int]:
    """Return the positions of a sequence in a rank's memory, row after row."""
    return [
        chunk.start + chunk.step * row
        for chunk in cache.ranks[rank]
        if chunk.sequence == sequence
        for row in range(chunk.count)
    ]


def seen_pairs(
    cache: Layout, rank: int, groups: tuple[DecodeGroup, ...], num_new: int
) -> list[tuple[int, int, int]]:
    """Return (sequence, query position, key position) of all pairs that kernels compute."""
    pairs = []
    for group in groups:
        for sequence in range(*group.sequences):
            positions = held(cache, rank, sequence)
            start = cache.lengths[sequence] - num_new
            for q_rows, kv_rows, (lower, upper) in group.attends:
                for a in range(q_rows.size):
                    for b in range(kv_rows.size):
                        if (lower is None or b - a >= lower) and (upper is None or b - a <= upper):
                            key = positions[kv_rows.start + b]
                            pairs.append((sequence, start + q_rows.start + a, key))
    return pairs


def expected_pairs(cache: Layout, num_new: int, mask: Mask) -> list[tuple[int, int, int]]:
    return [
        (sequence, query, key)
        for sequence, length in enumerate(cache.lengths)
        for query in range(length - num_new, length)
        for key in range(query + 1)
        if mask.left is None or key >= query - mask.left
    ]


@given(caches(), st.one_of(st.none(), st.integers(1, 9)))
@settings(deadline=None)
def test_every_visible_pair_is_computed_once(case: tuple[Layout, int], window: int | None) -> None:
    cache, num_new = case
    mask = make_mask(is_causal=True, window=window)
    found = []
    for rank in range(cache.world_size):
        groups = plan_decode(cache, rank, num_new, mask)
        assert [i for g in groups for i in range(*g.sequences)] == list(range(len(cache.lengths)))
        found += seen_pairs(cache, rank, groups, num_new)
    assert sorted(found) == expected_pairs(cache, num_new, mask)


@given(caches())
@settings(deadline=None)
def test_each_position_lies_on_one_rank(case: tuple[Layout, int]) -> None:
    cache, _ = case
    for sequence, length in enumerate(cache.lengths):
        everywhere = [p for rank in range(cache.world_size) for p in held(cache, rank, sequence)]
        assert sorted(everywhere) == list(range(length))
    for rank in range(cache.world_size):
        sequences = [chunk.sequence for chunk in cache.ranks[rank]]
        assert sequences == sorted(sequences)
        assert sum(rows_of_sequences(cache, rank)) == cache.num_rows(rank)


@given(st.integers(1, 6), st.integers(1, 4), st.integers(1, 8), st.integers(1, 60))
@settings(deadline=None)
def test_new_tokens_keep_ranks_within_a_block_for_each_sequence(
    world_size: int, num_sequences: int, block: int, steps: int
) -> None:
    cache = empty_layout(num_sequences, world_size)
    for _ in range(steps):
        cache = extend_cache(cache, deal_tokens(cache, [1] * num_sequences, block))
    rows = [cache.num_rows(rank) for rank in range(world_size)]
    assert max(rows) - min(rows) <= block * num_sequences


def test_a_token_after_a_balanced_prompt_is_one_unmasked_kernel() -> None:
    """Three ranks, 40 tokens in zigzag and one new one: chunks that adjoin are read as one."""
    cache = extend_cache(empty_layout(2, 3), partition_tokens([40, 40], 3, starts=[0, 0]))
    cache = extend_cache(cache, deal_tokens(cache, [1, 1], 64))
    for rank in range(3):
        for group in plan_decode(cache, rank, 1, Mask(None, 0)):
            rows = rows_of_sequences(cache, rank)[group.sequences.start]
            assert group.attends == (Attend((0, 1), (0, rows), (None, None)),)


def test_sequences_with_equal_kernels_are_one_batch() -> None:
    cache = empty_layout(8, 1)
    cache = extend_cache(cache, deal_tokens(cache, [5] * 8, 64))
    (group,) = plan_decode(cache, 0, 1, Mask(None, 0))
    assert tuple(group.sequences) == (0, 8)


def test_a_wrong_band_would_be_seen() -> None:
    """The pairs of a plan with one key too many are not the expected ones."""
    cache = extend_cache(empty_layout(1, 2), partition_tokens([9], 2, starts=[0]))
    mask = Mask(3, 0)
    groups = [plan_decode(cache, rank, 2, mask) for rank in range(2)]
    moved = [
        tuple(
            group._replace(
                attends=tuple(a._replace(band=(None, None)) for a in group.attends)  # type: ignore[arg-type]
            )
            for group in plan
        )
        for plan in groups
    ]
    expected = expected_pairs(cache, 2, mask)
    right = [p for rank in range(2) for p in seen_pairs(cache, rank, groups[rank], 2)]
    wrong = [p for rank in range(2) for p in seen_pairs(cache, rank, moved[rank], 2)]
    assert sorted(right) == expected
    assert sorted(wrong) != expected


@pytest.mark.parametrize(("counts", "block"), [((1,), 4), ((1, -1), 4), ((1, 1), 0)])
def test_bad_numbers_are_refused(counts: tuple[int, ...], block: int) -> None:
    with pytest.raises(ConfigError, match="give 0 or more for each of 2"):
        deal_tokens(empty_layout(2, 2), counts, block)


def test_bytes_of_a_decode_step() -> None:
    """out and lse in fp32, to each of three peers."""
    assert decode_bytes(2, 1, 9, 64, 4) == 2 * 9 * (64 + 1) * 4 * 3
