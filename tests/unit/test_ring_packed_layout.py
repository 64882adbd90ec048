"""Layouts of packed documents and of positions: every token once, ranks equal, little to send."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tokenfabric.errors import ConfigError
from tokenring.partition import Partition, partition_tokens
from tokenring.plan import plan_attention
from tokenring.positions import layout_of_positions
from tokenring.varlen import document_lengths, packed_layout

PARTITIONS: list[Partition] = ["contiguous", "zigzag", "striped"]


def starts_of(lengths: list[int]) -> list[int]:
    starts = [0]
    for length in lengths:
        starts.append(starts[-1] + length)
    return starts


@given(st.lists(st.integers(0, 40), max_size=12), st.integers(1, 6))
def test_every_token_is_dealt_once_and_ranks_are_equal(lengths: list[int], size: int) -> None:
    layout = packed_layout(starts_of(lengths), size)
    assert layout.lengths == tuple(lengths)
    indices = [i for rank in range(size) for i in layout.shard_indices(rank)]
    assert sorted(indices) == list(range(sum(lengths)))
    rows = [layout.num_rows(rank) for rank in range(size)]
    assert max(rows) - min(rows) <= 1


def test_short_documents_stay_whole_and_long_ones_are_shared() -> None:
    """Two hundred short ones: a quarter of zigzag's kernels. One long one: zigzag itself."""
    lengths = [20 + (7 * i) % 41 for i in range(200)]
    plan = plan_attention(
        heads_q=8, heads_kv=2, head_dim=64, q_layout=packed_layout(starts_of(lengths), 4),
        causal=True, topology="shared_memory", strategy="allgather",
    )  # fmt: skip
    assert max(len(part.computes) for part in plan.ranks) <= 60
    assert max(part.bytes_sent for part in plan.ranks) < 100_000
    work = [part.flops for part in plan.ranks]
    assert max(work) <= 1.15 * min(work)
    assert packed_layout([0, 500], 4) == partition_tokens([500], 4)


@pytest.mark.parametrize(
    "starts", [[], [1, 2], [0, 3, 2], torch.zeros(2, 2, dtype=torch.int32), torch.zeros(3)]
)
def test_what_is_no_list_of_starts_is_refused(starts: list[int] | torch.Tensor) -> None:
    with pytest.raises(ConfigError, match="cu_seqlens must be"):
        document_lengths(starts)


def test_starts_may_be_a_tensor() -> None:
    assert document_lengths(torch.tensor([0, 4, 4, 9], dtype=torch.int32)) == (4, 0, 5)


@given(st.integers(1, 40), st.integers(1, 5), st.sampled_from(PARTITIONS), st.integers(0, 9))
def test_positions_give_their_layout_back(
    tokens: int, size: int, partition: Partition, start: int
) -> None:
    layout = partition_tokens([tokens], size, partition, starts=[start])
    found = layout_of_positions([layout.positions(rank) for rank in range(size)])
    assert found.starts == (start,)
    assert found.lengths == (tokens,)
    for rank in range(size):
        assert found.positions(rank) == layout.positions(rank)
    steps = {chunk.step for chunks in found.ranks for chunk in chunks if chunk.count > 1}
    assert len(steps) <= 1


@pytest.mark.parametrize(
    ("positions", "message"),
    [
        ([[0, 1], [0, 1]], "again on rank 1"),
        ([[0, 1, 0, 1], [2, 3]], "again on rank 0"),
        ([[0, 1], [3]], "2 is missing"),
        ([[], []], "no rank has any token"),
    ],
)
def test_positions_that_are_no_sequence_are_refused(
    positions: list[list[int]], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        layout_of_positions(positions)
