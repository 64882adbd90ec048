"""Attention within documents that are packed one after another and sharded across ranks.

ring_attention with a layout of several sequences; see attention.py for what is computed, and
partition.py for how documents are dealt.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal, overload

import torch
from torch import Tensor

from tokenfabric.errors import ConfigError
from tokenring.attention import ring_attention
from tokenring.partition import Layout, Partition, partition_tokens, split_evenly

if TYPE_CHECKING:
    from tokenfabric.world import World

PackedPartition = Partition | Literal["auto"]


@overload
def ring_attention_varlen(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Sequence[int] | Tensor,
    *,
    world: "World",
    return_lse: Literal[False] = ...,
    **how: Any,
) -> Tensor: ...
@overload
def ring_attention_varlen(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Sequence[int] | Tensor,
    *,
    world: "World",
    return_lse: Literal[True],
    **how: Any,
) -> tuple[Tensor, Tensor]: ...
def ring_attention_varlen(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Sequence[int] | Tensor,
    *,
    world: "World",
    cu_seqlens_kv: Sequence[int] | Tensor | None = None,
    partition: PackedPartition = "auto",
    layout: Layout | None = None,
    return_lse: bool = False,
    **how: Any,
) -> Tensor | tuple[Tensor, Tensor]:
    """Attention of this rank's queries over the keys of their own documents, on whichever ranks.

        out = softmax(scale * q k^T, over the keys of its document that each query sees) v

    Documents may have any length: longer than a rank's share, shorter than the number of ranks,
    none at all. A rank computes one kernel, or a few, for each document that it has a part of.

    Collective, like its backward: as `ring_attention`.

    Args:
        q: [rows, heads_q, head_dim], this rank's rows: `shard(whole, 0, world=world,
            layout=packed_layout(cu_seqlens, world.size))`.
        k: [rows, heads_kv, head_dim].
        v: [rows, heads_kv, head_dim_v].
        cu_seqlens: where documents start in the whole packed sequence, and its end: 0, then
            numbers that do not fall. Equal on all ranks.
        world: the ranks.
        cu_seqlens_kv: the same of k and v, where documents have other numbers of keys
            (cross-attention); not with causal or a window, for which both count positions from 0.
        partition: how the documents were dealt; see `packed_layout`.
        layout: which tokens each rank holds, instead of partition; its lengths are the documents'.
        return_lse: also return lse.
        how: causal, scale, window, softcap, sinks, strategy, deterministic, local: as
            `ring_attention`.

    Returns:
        out [rows, heads_q, head_dim_v], and lse [rows, heads_q] fp32 if asked for.

    Raises:
        ConfigError: cu_seqlens is no such list, or contradicts the tensors or the layout; and what
            ring_attention refuses.
        MismatchError, PeerLostError, CommTimeoutError: see `ring_attention`.
    """
    for name, x in {"q": q, "k": k, "v": v}.items():
        if x.dim() != 3:
            raise ConfigError(f"{name} must be [rows, heads, head_dim], got {tuple(x.shape)}")
    lengths = document_lengths(cu_seqlens)
    if layout is None:
        layout = _deal(lengths, world.size, partition)
    elif layout.lengths != lengths:
        raise ConfigError(
            f"the layout has {len(layout.lengths)} sequences of {layout.num_tokens} tokens, "
            f"cu_seqlens {len(lengths)} of {sum(lengths)}: make both of the same documents"
        )
    kv_layout = None
    if cu_seqlens_kv is not None:
        if how.get("causal") or how.get("window") is not None:
            raise ConfigError(
                "cu_seqlens_kv with causal or a window is ambiguous where a document has other "
                "numbers of queries and keys: use ring_attention with layouts that say positions"
            )
        kv_layout = _deal(document_lengths(cu_seqlens_kv), world.size, partition)
    out, lse = ring_attention(
        q[None], k[None], v[None],
        world=world, layout=layout, kv_layout=kv_layout, return_lse=True, **how,
    )  # fmt: skip
    return (out[0], lse[0]) if return_lse else out[0]


def packed_layout(
    cu_seqlens: Sequence[int] | Tensor, world_size: int, partition: PackedPartition = "auto"
) -> Layout:
    """Return which tokens of packed documents each rank holds: what `shard` takes. Not collective.

    "auto" cuts every document that is longer than half a rank's share in zigzag, so that its work
    is shared equally, and deals the others end to end, so that nearly all of them lie whole on one
    rank: a kernel each and nothing to send. Rows differ by at most one between ranks. For example,
    of 200 documents of 20 to 60 tokens a rank of 4 computes some 50 kernels instead of 200, and
    sends 17 kB at most instead of 4.6 MB (8 heads of 64, causal, bf16).

    Args:
        cu_seqlens: as for `ring_attention_varlen`.
        world_size: number of ranks.
        partition: "auto", or how every document is dealt.

    Raises:
        ConfigError: cu_seqlens is no list of starts, or the partition is unknown.
    """
    return _deal(document_lengths(cu_seqlens), world_size, partition)


def _deal(lengths: tuple[int, ...], world_size: int, partition: PackedPartition) -> Layout:
    if partition != "auto":
        return partition_tokens(lengths, world_size, partition)
    is_long = [2 * world_size * length > sum(lengths) for length in lengths]
    long = partition_tokens(
        [length * long for length, long in zip(lengths, is_long, strict=True)], world_size
    )
    rows = [long.num_rows(rank) for rank in range(world_size)]
    # Ranks that have a row more of the long ones come first for a row more of all.
    order = sorted(range(world_size), key=lambda rank: -rows[rank])
    room = [0] * world_size
    for rank, share in zip(order, split_evenly(sum(lengths), world_size), strict=True):
        room[rank] = share - rows[rank]
    short = partition_tokens(
        [length * (not long) for length, long in zip(lengths, is_long, strict=True)],
        world_size,
        "contiguous",
        rank_lengths=room,
    )
    ranks = tuple(
        tuple(sorted((*a, *b), key=lambda chunk: chunk.sequence))
        for a, b in zip(long.ranks, short.ranks, strict=True)
    )
    return Layout(ranks, (0,) * len(lengths), lengths)


def document_lengths(cu_seqlens: Sequence[int] | Tensor) -> tuple[int, ...]:
    """Return the lengths of documents from where they start.

    Raises:
        ConfigError: it is empty, does not begin with 0, falls, or holds something else than
            integers.
    """
    if isinstance(cu_seqlens, Tensor):
        if cu_seqlens.dim() != 1 or cu_seqlens.is_floating_point() or cu_seqlens.is_complex():
            raise ConfigError(
                f"cu_seqlens must be one row of integers, got {tuple(cu_seqlens.shape)} of "
                f"{cu_seqlens.dtype}"
            )
        cu_seqlens = cu_seqlens.to(torch.int64).tolist()
    starts = tuple(cu_seqlens)
    lengths = tuple(stop - start for start, stop in pairwise(starts))
    if not starts or starts[0] != 0 or min(lengths, default=0) < 0:
        raise ConfigError(
            f"cu_seqlens must begin with 0 and not fall, got {_shortened(starts)}: it has the "
            "start of each document, then the number of all tokens"
        )
    return lengths


def _shortened(values: tuple[int, ...]) -> str:
    text = ", ".join(map(str, values[:8]))
    return f"({text}{', ...' if len(values) > 8 else ''})"
