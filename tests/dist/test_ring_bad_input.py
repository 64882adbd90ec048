"""Arguments of tokenring that nobody would write down: each call works on all ranks, or each rank
says why not. Packed documents, and a cache that is decoded from.

Hypothesis draws the same calls on every rank. Whatever happens, the world is usable after it.
"""

from collections.abc import Callable
from itertools import accumulate
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.dist.test_bad_input import REFUSALS, TOGETHER, attempt, tensors
from tokenfabric.testing.spawn import run_ranks
from tokenfabric.world import World
from tokenring.cache import RingCache
from tokenring.decode import ring_decode, ring_prefill
from tokenring.movement import STRATEGIES
from tokenring.partition import partition_tokens
from tokenring.varlen import packed_layout, ring_attention_varlen

MANY = settings(TOGETHER, max_examples=120)
HEADS, KV_HEADS, HEAD_DIM = 4, 2, 8
NUMBERS = st.none() | st.integers(-2, 9)
DOCUMENTS = st.lists(st.integers(0, 9), max_size=5).map(lambda lengths: [0, *accumulate(lengths)])
HOW = st.fixed_dictionaries(
    {},
    optional={
        "causal": st.booleans(),
        "window": NUMBERS | st.tuples(st.integers(-2, 5), st.integers(-2, 5)),
        "scale": st.none() | st.sampled_from([0.0, -1.0, float("nan"), float("inf"), 0.3]),
        "softcap": st.none() | st.sampled_from([0.0, -3.0, float("nan"), 20.0]),
        "strategy": st.sampled_from(["auto", *STRATEGIES, "none of these"]),
        "sinks": st.none() | tensors() | st.just(torch.zeros(HEADS)),
        "return_lse": st.booleans(),
    },
)


def _rank_packs_anything(world: World) -> None:
    @MANY
    @given(
        cu_seqlens=DOCUMENTS | DOCUMENTS | st.lists(st.integers(-1, 9), max_size=5),
        odd=st.none() | st.none() | tensors(),
        which=st.sampled_from("qkv"),
        partition=st.sampled_from(["auto", "auto", "zigzag", "contiguous", "none of these"]),
        how=HOW,
    )
    def pack(
        cu_seqlens: list[int], odd: Tensor | None, which: str, partition: Any, how: dict[str, Any]
    ) -> None:  # fmt: skip
        def call() -> None:
            rows = packed_layout(cu_seqlens, world.size, partition).num_rows(world.rank)
            inputs = {
                "q": torch.ones(rows, HEADS, HEAD_DIM),
                "k": torch.ones(rows, KV_HEADS, HEAD_DIM),
                "v": torch.ones(rows, KV_HEADS, HEAD_DIM),
            }
            if odd is not None:
                inputs[which] = odd
            ring_attention_varlen(
                **inputs, cu_seqlens=cu_seqlens, world=world, partition=partition, **how
            )

        attempt(world, call)

    pack()


def _rank_decodes_anything(world: World) -> None:
    @MANY
    @given(
        prompt=st.integers(0, 9),
        num_sequences=st.sampled_from([-1, 0, 1, 1, 1, 2, 3]),
        layers=st.sampled_from([(0, 0), (1, 1), (1, 1), (0, 1), (0, 2), (-1, 0)]),
        num_new=st.integers(0, 3),
        odd=st.none() | st.none() | tensors(),
        which=st.sampled_from(["q", "k", "v", "prompt"]),
        how=HOW,
    )
    def decode(
        prompt: int, num_sequences: int, layers: tuple[int, int], num_new: int,
        odd: Tensor | None, which: str, how: dict[str, Any],
    ) -> None:  # fmt: skip
        how.pop("strategy", None)
        how.pop("causal", None)

        def call() -> None:
            cache = RingCache(world, num_layers=2, num_sequences=num_sequences)
            layout = partition_tokens((prompt,) * num_sequences, world.size)
            rows = layout.num_rows(world.rank)
            shapes = {"q": HEADS, "k": KV_HEADS, "v": KV_HEADS}
            old = {name: torch.ones(1, rows, heads, HEAD_DIM) for name, heads in shapes.items()}
            if odd is not None and which == "prompt":
                old["q"] = odd
            before = cache.lengths
            try:
                ring_prefill(**old, cache=cache, world=world, layout=layout, layer=layers[0])
            except REFUSALS:
                assert cache.lengths == before, "a refused prefill appends nothing"
                raise
            new = {
                name: torch.ones(num_sequences, num_new, heads, HEAD_DIM)
                for name, heads in shapes.items()
            }
            if odd is not None and which != "prompt":
                new[which] = odd
            cache.append_replicated(new["k"], new["v"], layers[0])
            ring_decode(new["q"], cache, world=world, layer=layers[1], **how)

        attempt(world, call)

    decode()


@pytest.mark.parametrize("rank_function", [_rank_packs_anything, _rank_decodes_anything])
def test_any_ring_call_works_everywhere_or_is_refused_by_name(
    rank_function: Callable[[World], None],
) -> None:
    run_ranks(rank_function, 2, timeout_s=120)
