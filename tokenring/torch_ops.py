"""torch.ops.tokenring.*: attention and its backward as operators, for torch.compile and FX.

Operators take the world's name (World.group_name) instead of the world, and layouts as integers.
Calls outside of a compiled region do not come here: attention.py differentiates them itself.
"""

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tokenfabric.world import find_world
from tokenring.call import Attention
from tokenring.check_call import check_attention, layout_of
from tokenring.local_protocol import accumulation_dtype
from tokenring.partition import Layout, Partition
from tokenring.passes import attend, attend_backward

if TYPE_CHECKING:
    from tokenfabric.world import World

# Kept alive for as long as the operators are to exist.
_LIBRARY = torch.library.Library("tokenring", "FRAGMENT")

# What `_asked_for` reads, in its order.
_TERMS = (
    "SymInt[]? layout, SymInt[]? kv_layout, SymInt? num_tokens, str partition, bool causal, "
    "float? scale, SymInt[]? window, float? softcap, str strategy, bool deterministic, str local, "
    "bool needs_gradient, str group_name"
)


def traced_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    sinks: Tensor | None,
    world: "World",
    *,
    layout: Layout | None,
    kv_layout: Layout | None,
    num_tokens: int | None,
    partition: Partition,
    causal: bool,
    scale: float | None,
    window: int | tuple[int, int] | None,
    softcap: float | None,
    strategy: str,
    deterministic: bool,
    local: str,
) -> tuple[Tensor, Tensor]:
    """Express `ring_attention` by the operators, inside torch.compile."""
    inputs = (q, k, v) if sinks is None else (q, k, v, sinks)
    needs_gradient = torch.is_grad_enabled() and any(x.requires_grad for x in inputs)
    out, lse = torch.ops.tokenring.attention(
        q, k, v, sinks,
        None if layout is None else layout.as_integers(),
        None if kv_layout is None else kv_layout.as_integers(),
        num_tokens, partition, causal, scale,
        [window] if isinstance(window, int) else window,
        softcap, strategy, deterministic, local, needs_gradient, world.group_name,
    )  # fmt: skip
    return out, lse


def _asked_for(
    q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None, terms: tuple[Any, ...]
) -> tuple["World", Attention]:
    (
        layout_integers, kv_integers, num_tokens, partition, causal, scale, window, softcap,
        strategy, deterministic, local, needs_gradient, group_name,
    ) = terms  # fmt: skip
    world = find_world(group_name)
    layout = layout_of(
        q, world, partition, num_tokens,
        None if layout_integers is None else Layout.of_integers(layout_integers),
    )  # fmt: skip
    attention = check_attention(
        q, k, v, world,
        q_layout=layout,
        kv_layout=layout if kv_integers is None else Layout.of_integers(kv_integers),
        causal=causal, scale=scale,
        window=window[0] if window is not None and len(window) == 1 else window,
        softcap=softcap, sinks=sinks, strategy=strategy, deterministic=deterministic, local=local,
    )  # fmt: skip
    return world, replace(attention, needs_gradient=needs_gradient)


def _attention(
    q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None, *terms: Any
) -> tuple[Tensor, Tensor]:
    world, attention = _asked_for(q, k, v, sinks, terms)
    return attend(world, attention, q, k, v, sinks)


def _fake_attention(
    q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None, *terms: Any
) -> tuple[Tensor, Tensor]:
    out = q.new_empty((*q.shape[:3], v.shape[3]))
    return out, q.new_empty(q.shape[:3], dtype=accumulation_dtype(q.dtype))


def _attention_backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    sinks: Tensor | None,
    out: Tensor,
    lse: Tensor,
    dout: Tensor,
    dlse: Tensor,
    *terms: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    world, attention = _asked_for(q, k, v, sinks, terms)
    dq, dk, dv, dsinks = attend_backward(world, attention, dout, dlse, q, k, v, out, lse, sinks)
    return dq, dk, dv, q.new_empty(0) if dsinks is None else dsinks


def _fake_attention_backward(
    q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None, *rest: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dq, dk, dv = (x.new_empty(x.shape) for x in (q, k, v))
    return dq, dk, dv, q.new_empty(0) if sinks is None else sinks.new_empty(sinks.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, sinks, *ctx.terms = inputs
    ctx.save_for_backward(q, k, v, sinks, *output)


def _differentiate(ctx: Any, dout: Tensor, dlse: Tensor) -> tuple[Tensor | None, ...]:
    tensors = ctx.saved_tensors
    dq, dk, dv, dsinks = torch.ops.tokenring.attention_backward(*tensors, dout, dlse, *ctx.terms)
    has_sinks = tensors[3] is not None
    return dq, dk, dv, dsinks if has_sinks else None, *(None for _ in ctx.terms)


_LIBRARY.define(
    f"attention(Tensor q, Tensor k, Tensor v, Tensor? sinks, {_TERMS}) -> (Tensor, Tensor)"
)
_LIBRARY.define(
    "attention_backward(Tensor q, Tensor k, Tensor v, Tensor? sinks, Tensor out, Tensor lse, "
    f"Tensor dout, Tensor dlse, {_TERMS}) -> (Tensor, Tensor, Tensor, Tensor)"
)
_LIBRARY.impl("attention", _attention, "CompositeExplicitAutograd")
_LIBRARY.impl("attention_backward", _attention_backward, "CompositeExplicitAutograd")
torch.library.register_fake("tokenring::attention", _fake_attention, lib=_LIBRARY)
torch.library.register_fake("tokenring::attention_backward", _fake_attention_backward, lib=_LIBRARY)
torch.library.register_autograd(
    "tokenring::attention", _differentiate, setup_context=_save, lib=_LIBRARY
)
