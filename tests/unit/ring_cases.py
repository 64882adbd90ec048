"""Random attention calls for the tests of ring plans: layouts, masks, heads, strategies."""

from typing import Any

from hypothesis import strategies as st

from tokenring.movement import STRATEGIES
from tokenring.partition import Layout, partition_tokens

PARTITIONS = ("contiguous", "zigzag", "striped")
HEADS = ((1, 1), (4, 4), (4, 2), (6, 3), (4, 1), (9, 3))
RELAYS = ("q", "kv", "kv_bidirectional")


def grids(world_size: int) -> list[tuple[int, int, int]]:
    """Return every u x a x b that fills the world."""
    sizes = range(1, world_size + 1)
    return [
        (u, a, world_size // (u * a)) for u in sizes for a in sizes if world_size % (u * a) == 0
    ]


@st.composite
def layouts(draw: st.DrawFn, world_size: int, max_length: int) -> tuple[Layout, Layout]:
    """Draw the layouts of queries and keys: the same, or of new tokens behind a cache."""
    partition = draw(st.sampled_from(PARTITIONS))
    lengths = draw(st.lists(st.integers(0, max_length), min_size=1, max_size=3))
    if not draw(st.booleans()):
        layout = partition_tokens(lengths, world_size, partition)
        return layout, layout
    starts = draw(
        st.lists(st.integers(0, max_length), min_size=len(lengths), max_size=len(lengths))
    )
    new = partition_tokens(lengths, world_size, partition, starts=starts)
    if draw(st.booleans()):
        return new, partition_tokens(starts, world_size, partition).followed_by(new)
    totals = [start + length for start, length in zip(starts, lengths, strict=True)]
    return new, partition_tokens(totals, world_size, partition)


@st.composite
def calls(draw: st.DrawFn, max_world: int = 8, max_length: int = 24) -> dict[str, Any]:
    """Draw the arguments of plan_attention."""
    world_size = draw(st.integers(1, max_world))
    q_layout, kv_layout = draw(layouts(world_size, max_length))
    strategy = draw(st.sampled_from(STRATEGIES))
    is_causal = draw(st.booleans())
    windows = [None, 1, 2, 5, 9] if is_causal else [None, (0, 0), (3, 0), (2, 5), (0, 4)]
    heads_q, heads_kv = draw(st.sampled_from(HEADS))
    locals_ = [None, "split", "whole"] + ([] if strategy in RELAYS else ["fused"])
    return {
        "q_layout": q_layout,
        "kv_layout": kv_layout,
        "causal": is_causal,
        "window": draw(st.sampled_from(windows)),
        "heads_q": heads_q,
        "heads_kv": heads_kv,
        "head_dim": 4,
        "head_dim_v": 3,
        "direction": draw(st.sampled_from(["forward", "backward"])),
        "strategy": strategy,
        "grid": draw(st.sampled_from(grids(world_size))) if strategy == "grid" else None,
        "num_stages": draw(st.sampled_from([None, 1, 2, 9])),
        "local": draw(st.sampled_from(locals_)),
    }
