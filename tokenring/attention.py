"""Exact attention over a sequence whose tokens lie on several ranks, with gradients."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, overload

import torch
from torch import Tensor

from tokenfabric.errors import ConfigError
from tokenring.call import Attention
from tokenring.local_protocol import check_scores
from tokenring.partition import Layout, Partition, partition_tokens
from tokenring.passes import attend, attend_backward, with_plain_rows
from tokenring.recompute import kept_or_computed

if TYPE_CHECKING:
    from tokenfabric.world import World


@overload
def ring_attention(
    q: Tensor, k: Tensor, v: Tensor, *, world: "World", return_lse: Literal[False] = ..., **how: Any
) -> Tensor: ...
@overload
def ring_attention(
    q: Tensor, k: Tensor, v: Tensor, *, world: "World", return_lse: Literal[True], **how: Any
) -> tuple[Tensor, Tensor]: ...
def ring_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    world: "World",
    causal: bool = False,
    scale: float | None = None,
    window: int | tuple[int, int] | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    partition: Partition = "zigzag",
    num_tokens: int | None = None,
    layout: Layout | None = None,
    kv_layout: Layout | None = None,
    strategy: str = "auto",
    deterministic: bool = False,
    local: str = "auto",
    return_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Attention of this rank's queries over the keys of all ranks (arXiv 2412.20501 and others).

        out = softmax(scale * q k^T, over the keys each query sees) v

    Collective: all ranks call it with tensors of one whole, where the world is, in the same order,
    and so do their backwards. What travels, q and out or k and v, is chosen by the bytes; both give
    the same values but for rounding. Each direction is planned for itself.

    Under torch.compile it is an operator: the graph does not break. On GPUs it is enqueued on the
    current stream and cannot be captured in a CUDA graph; a message that does not come makes the
    results NaN and the next call raise.

    Args:
        q: [batch, rows, heads_q, head_dim], this rank's rows as `tokenring.shard` deals them.
        k: [batch, rows, heads_kv, head_dim]; heads_q is a multiple of heads_kv.
        v: [batch, rows, heads_kv, head_dim_v].
        world: the ranks.
        causal: a query sees no later position.
        scale: of the scores; default head_dim ** -0.5.
        window: with causal, how many keys a query sees, its own among them; without, (left, right).
        softcap: scores become softcap * tanh(scores / softcap).
        sinks: [heads_q], a logit beside the keys' for each query head, without a value; equal on
            all ranks. Its gradient is this rank's share, to be summed over the ranks as for any
            weight that all of them have.
        partition: how the tokens were dealt: "contiguous", "zigzag" or "striped".
        num_tokens: length of the whole sequence; default rows * ranks, if all have as many rows.
        layout: which tokens this rank and the others hold, instead of partition and num_tokens.
        kv_layout: the same of k and v, where it differs (a cache, cross-attention).
        strategy: "auto", or one of `tokenring.STRATEGIES`.
        deterministic: refuse local kernels whose bits may differ from call to call. On CPUs none
            does; on GPUs the backward of torch's flash kernels does.
        local: "auto", or the local kernels that must be taken: "flash_cpu", "flash_cuda", "cudnn",
            "flash_attn_2", "flash_attn_3", "flash_attn_4", "tiled".
        return_lse: also return lse.

    Returns:
        out [batch, rows, heads_q, head_dim_v] in the dtype of q, and lse [batch, rows, heads_q]
        fp32 if asked for. A query that sees no key has out 0 and lse -inf. A NaN in q or k makes
        NaN of the rows that see it.

    Raises:
        ConfigError: an argument is unsupported, or contradicts another; on this rank only, before
            anything moves.
        MismatchError: the ranks ask for different things; nothing moved.
        PeerLostError, CommTimeoutError: naming step, tensor and peer.
    """
    if torch.compiler.is_compiling():
        from tokenring.torch_ops import traced_attention

        traced = traced_attention(
            q, k, v, sinks, world,
            layout=layout, kv_layout=kv_layout, num_tokens=num_tokens, partition=partition,
            causal=causal, scale=scale, window=window, softcap=softcap, strategy=strategy,
            deterministic=deterministic, local=local,
        )  # fmt: skip
        return traced if return_lse else traced[0]
    layout = layout_of(q, world, partition, num_tokens, layout)
    attention = check_attention(
        q, k, v, world,
        q_layout=layout, kv_layout=kv_layout or layout, causal=causal, scale=scale, window=window,
        softcap=softcap, sinks=sinks, strategy=strategy, deterministic=deterministic,
        local=local,
    )  # fmt: skip
    out, lse = _RingAttention.apply(q, k, v, sinks, world, attention)
    return (out, lse) if return_lse else out


def check_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    world: "World",
    *,
    q_layout: Layout,
    kv_layout: Layout,
    causal: bool,
    scale: float | None,
    window: int | tuple[int, int] | None,
    softcap: float | None,
    sinks: Tensor | None,
    strategy: str,
    deterministic: bool,
    local: str = "auto",
) -> Attention:
    """Refuse what cannot be computed, by name; return the rest as what it is planned by."""
    tensors = {"q": q, "k": k, "v": v}
    for name, x in tensors.items():
        if x.dim() != 4 or x.dtype != q.dtype or not x.is_floating_point():
            raise ConfigError(
                f"{name} must be [batch, rows, heads, head_dim] of a floating dtype, that of q "
                f"({q.dtype}); got {tuple(x.shape)} of {x.dtype}"
            )
        if x.device != world.device or x.layout is not torch.strided:
            raise ConfigError(
                f"{name} is {x.layout} on {x.device}, but this world is on {world.device}"
            )
    if k.shape[:3] != v.shape[:3] or k.shape[0] != q.shape[0] or k.shape[3] != q.shape[3]:
        raise ConfigError(
            f"q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}: k and v need one batch, "
            "rows and heads, q and k one batch and head_dim"
        )
    for names, x, layout in (("q", q, q_layout), ("k and v", k, kv_layout)):
        if layout.world_size != world.size:
            raise ConfigError(
                f"the layout of {names} is for {layout.world_size} ranks, the world has "
                f"{world.size}"
            )
        if x.shape[1] != layout.num_rows(world.rank):
            raise ConfigError(
                f"rank {world.rank} has {x.shape[1]} rows of {names}, its layout says "
                f"{layout.num_rows(world.rank)} of {layout.num_tokens}: pass num_tokens=, or the "
                "layout the tensors were sharded by"
            )
    if sinks is not None and (
        sinks.shape != (q.shape[2],) or not sinks.is_floating_point() or sinks.device != q.device
    ):
        raise ConfigError(
            f"sinks must be one number for each of {q.shape[2]} query heads, on {q.device}, got "
            f"{tuple(sinks.shape)} of {sinks.dtype} on {sinks.device}"
        )
    chosen_scale = q.shape[3] ** -0.5 if scale is None else float(scale)
    check_scores(chosen_scale, softcap)
    needs_gradient = torch.is_grad_enabled() and any(
        x is not None and x.requires_grad for x in (q, k, v, sinks)
    )
    return Attention(
        q_layout=q_layout,
        kv_layout=kv_layout,
        batch=q.shape[0],
        heads_q=q.shape[2],
        heads_kv=k.shape[2],
        head_dim=q.shape[3],
        head_dim_v=v.shape[3],
        dtype=q.dtype,
        causal=causal,
        window=window if window is None or isinstance(window, int) else tuple(window),
        scale=chosen_scale,
        softcap=softcap,
        has_sinks=sinks is not None,
        strategy=strategy,
        deterministic=deterministic,
        needs_gradient=needs_gradient,
        local=local,
    )


def layout_of(
    q: Tensor,
    world: "World",
    partition: Partition,
    num_tokens: int | None,
    layout: Layout | None,
) -> Layout:
    """Return the layout that was passed, or that of as many rows on each rank."""
    if layout is not None:
        if num_tokens is not None:
            raise ConfigError("layout says how many tokens there are: leave num_tokens out")
        return layout
    if q.dim() != 4:
        raise ConfigError(f"q must be [batch, rows, heads, head_dim], got {tuple(q.shape)}")
    whole = q.shape[1] * world.size if num_tokens is None else num_tokens
    return partition_tokens(whole, world.size, partition)


class _RingAttention(torch.autograd.Function):
    """Saves q, k, v, out and lse, as a single-device kernel does, and nothing of other ranks."""

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        sinks: Tensor | None,
        world: "World",
        attention: Attention,
    ) -> tuple[Tensor, Tensor]:
        q, k, v = (with_plain_rows(x) for x in (q, k, v))
        out, lse = kept_or_computed(lambda: attend(world, attention, q, k, v, sinks))
        ctx.save_for_backward(q, k, v, out, lse, sinks)
        ctx.world, ctx.attention = world, attention
        ctx.set_materialize_grads(False)
        return out, lse

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        dout, dlse = gradients
        q, k, v, out, lse, sinks = ctx.saved_tensors
        # A rank whose results nobody used still walks: the others need its keys.
        dout = torch.zeros_like(out) if dout is None else dout
        dq, dk, dv, dsinks = attend_backward(
            ctx.world, ctx.attention, dout, dlse, q, k, v, out, lse, sinks
        )
        return dq, dk, dv, dsinks if ctx.needs_input_grad[3] else None, None, None


__all__: Sequence[str] = ("ring_attention",)
