"""Attention over a sharded cache: of a prompt's many queries, and of a few new ones.

A prompt is an attention call like any other, with a layout for the queries and one for the cache.
Decoding has its own way: every rank has the new tokens' queries, as every rank runs the model on
them; each attends over what it holds; the partials go to all ranks, and each merges all of them, in
rank order, so that all hold the same bits. A rank sends out and lse of its part, in fp32, to every
other one: `decode_bytes` of decode_plan.py, 2340 bytes for a token of 9 heads of 64. Keys and
values never travel.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, overload

import torch
from torch import Tensor

from tokenfabric.errors import ConfigError
from tokenring.attention import ring_attention
from tokenring.cache import RingCache
from tokenring.capability import LocalNeeds, band_kind
from tokenring.decode_plan import DecodeGroup, plan_decode
from tokenring.exchange import gather_rows
from tokenring.local import choose_local
from tokenring.local_protocol import LocalAttention, accumulation_dtype, check_scores
from tokenring.mask import make_mask
from tokenring.merge import merge_partials
from tokenring.merge_native import MergeThreads
from tokenring.partial import Partial
from tokenring.partition import Layout

if TYPE_CHECKING:
    from tokenfabric.world import World

STEP_KEY = "tokenring decode"
"""Of what a world keeps between the layers of a step."""


def ring_prefill(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cache: RingCache,
    *,
    world: "World",
    layout: Layout,
    layer: int = 0,
    **how: Any,
) -> Tensor:
    """Append this rank's new keys to the cache and attend over all of it, causally. Collective.

    Args:
        q: [1, rows, heads_q, head_dim], this rank's rows of the new tokens.
        k: [1, rows, heads_kv, head_dim].
        v: [1, rows, heads_kv, head_dim_v].
        cache: may hold tokens already. If the call is refused it is as before.
        world: the ranks.
        layout: of the new tokens: `partition_tokens(lengths, world.size, starts=cache.lengths)`.
        layer: of the cache.
        how: scale, window, softcap, sinks, strategy, deterministic, local: as `ring_attention`.

    Returns:
        out [1, rows, heads_q, head_dim_v]. Without gradients.

    Raises:
        ConfigError, MismatchError, PeerLostError, CommTimeoutError: see `ring_attention`.
    """
    _refuse_gradients(q, k, v)
    before = cache.layout(layer)
    cache.append(k, v, layout, layer)
    try:
        keys, values = cache.packed(layer)
        return ring_attention(
            q, keys, values,
            world=world, causal=True, layout=layout, kv_layout=cache.layout(layer), **how,
        )  # fmt: skip
    except Exception:
        cache.forget(before, layer)
        raise


@overload
def ring_decode(
    q: Tensor,
    cache: RingCache,
    *,
    world: "World",
    return_lse: Literal[False] = ...,
    **how: Any,
) -> Tensor: ...
@overload
def ring_decode(
    q: Tensor, cache: RingCache, *, world: "World", return_lse: Literal[True], **how: Any
) -> tuple[Tensor, Tensor]: ...
def ring_decode(
    q: Tensor,
    cache: RingCache,
    *,
    world: "World",
    layer: int = 0,
    scale: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    return_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Attention of each sequence's last tokens over its sharded cache, causal. Collective.

    The keys of these tokens are in the cache already: `cache.append_replicated(k, v, layer)`.
    Exact: each rank's part is computed once, kept and sent in fp32, and merged with the others'.

    Args:
        q: [num_sequences, new tokens, heads_q, head_dim]: the queries of the last tokens of each
            sequence, the same on all ranks. Sequences may have any lengths.
        cache: K and V, of the same ranks.
        world: the ranks.
        layer: of the cache.
        scale: of the scores; default head_dim ** -0.5.
        window: how many keys a query sees, its own among them.
        softcap: scores become softcap * tanh(scores / softcap).
        sinks: [heads_q], a logit beside the keys' for each query head, without a value.
        return_lse: also return lse.

    Returns:
        out [num_sequences, new tokens, heads_q, head_dim_v] in the dtype of q, the same bits on all
        ranks; lse [num_sequences, new tokens, heads_q] fp32 if asked for. Without gradients.

    Raises:
        ConfigError: q does not fit the cache, or more new tokens than a sequence has.
        MismatchError: the ranks' caches or arguments differ; nothing moved.
        PeerLostError, CommTimeoutError: naming the peer.
    """
    _refuse_gradients(q)
    k, v = cache.slab(layer)
    call = _check(q, k, v, world, cache.layout(layer), scale, window, softcap, sinks)
    wide = accumulation_dtype(q.dtype)
    out = q.new_empty((*q.shape[:3], v.shape[3]))
    lse = q.new_empty(q.shape[:3], dtype=wide)
    if out.numel():
        step = _prepare(world, call)
        # One message: the lse of a row lies behind its out.
        packed = out.new_empty((*lse.shape, v.shape[3] + 1), dtype=wide)
        _attend(step, q, k, v, packed)
        parts = [packed]
        if world.size > 1:
            rows = (packed.shape[0] * packed.shape[1],) * world.size
            terms = f"decode in layer {layer} {step.terms}"
            everyone = gather_rows(world, packed.flatten(0, 1), rows, terms=terms)
            parts = [part.view(packed.shape) for part in everyone]
        merge_partials(
            [Partial(part[..., :-1], part[..., -1]) for part in parts],
            out,
            lse,
            sinks=None if sinks is None else sinks.detach().to(wide),
            threads=step.threads,
        )
    return (out, lse) if return_lse else out


@dataclass(frozen=True, kw_only=True, slots=True)
class _Call:
    """What is asked for, equal on all ranks and, between two tokens, in all layers."""

    layout: Layout
    num_new: int
    heads_q: int
    heads_kv: int
    head_dim: int
    head_dim_v: int
    dtype: torch.dtype
    scale: float
    window: int | None
    softcap: float | None
    has_sinks: bool


@dataclass(frozen=True, slots=True)
class _Step:
    """What is settled once for all layers."""

    call: _Call
    groups: tuple[DecodeGroup, ...]
    local: LocalAttention
    threads: MergeThreads | None
    terms: str


def _prepare(world: "World", call: _Call) -> _Step:
    """Return this rank's part; kept while layer after layer asks for the same."""
    kept: _Step | None = world.prepared.get(STEP_KEY)
    if kept is not None and kept.call == call:
        return kept
    mask = make_mask(is_causal=True, window=call.window)
    groups = plan_decode(call.layout, world.rank, call.num_new, mask)
    local, _ = choose_local(
        LocalNeeds(
            device=world.device.type,
            dtype=str(call.dtype).removeprefix("torch."),
            head_dim=call.head_dim,
            head_dim_v=call.head_dim_v,
            bands=frozenset(band_kind(*a.band) for group in groups for a in group.attends),
            has_softcap=call.softcap is not None,
        )
    )
    on_cpu = world.device.type == "cpu"
    threads = MergeThreads.of_communicator(world.host_comm) if on_cpu else None
    step = _Step(call, groups, local, threads, repr(call))
    world.prepared[STEP_KEY] = step
    return step


def _attend(step: _Step, q: Tensor, k: Tensor, v: Tensor, into: Tensor) -> None:
    """Compute this rank's part of every query over the rows that it holds."""
    for group in step.groups:
        sequences = slice(*group.sequences)
        partials = [
            Partial(found.out, found.lse, q_rows.start + found.row_start, found.head_start)
            for q_rows, kv_rows, band in group.attends
            for found in step.local.forward(
                q[sequences, slice(*q_rows)],
                k[sequences, slice(*kv_rows)],
                v[sequences, slice(*kv_rows)],
                scale=step.call.scale,
                band=band,
                softcap=step.call.softcap,
            )
        ]
        part = into[sequences]
        merge_partials(partials, part[..., :-1], part[..., -1], threads=step.threads)


def _check(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    world: "World",
    layout: Layout,
    scale: float | None,
    window: int | None,
    softcap: float | None,
    sinks: Tensor | None,
) -> _Call:
    if layout.world_size != world.size:
        raise ConfigError(
            f"the cache is of {layout.world_size} ranks, the world has {world.size}: make a "
            "RingCache of this world"
        )
    if k.device != world.device:
        raise ConfigError(f"the cache is on {k.device}, but this world is on {world.device}")
    if (
        q.dim() != 4 or q.dtype != k.dtype or q.device != k.device
        or q.shape[0] != k.shape[0] or q.shape[3] != k.shape[3] or q.shape[2] % k.shape[2]
    ):  # fmt: skip
        raise ConfigError(
            f"q {tuple(q.shape)} of {q.dtype} must be [{k.shape[0]}, new tokens, a multiple of "
            f"{k.shape[2]}, {k.shape[3]}] of {k.dtype} on {k.device}, as the cache is"
        )
    if q.shape[1] > min(layout.lengths):
        raise ConfigError(
            f"{q.shape[1]} new queries, but a sequence of the cache has {min(layout.lengths)} "
            "tokens: append the new tokens' keys before ring_decode"
        )
    if sinks is not None and (sinks.shape != (q.shape[2],) or sinks.device != q.device):
        raise ConfigError(
            f"sinks must be [{q.shape[2]}], one a head, on {q.device}, got {tuple(sinks.shape)} on "
            f"{sinks.device}"
        )
    chosen_scale = q.shape[3] ** -0.5 if scale is None else float(scale)
    check_scores(chosen_scale, softcap)
    return _Call(
        layout=layout,
        num_new=q.shape[1],
        heads_q=q.shape[2],
        heads_kv=k.shape[2],
        head_dim=q.shape[3],
        head_dim_v=v.shape[3],
        dtype=q.dtype,
        scale=chosen_scale,
        window=window,
        softcap=softcap,
        has_sinks=sinks is not None,
    )


def _refuse_gradients(*tensors: Tensor) -> None:
    if torch.is_grad_enabled() and any(x.requires_grad for x in tensors):
        raise ConfigError(
            "attention over a cache has no gradients: call it under torch.no_grad(), or use "
            "ring_attention without a cache"
        )
