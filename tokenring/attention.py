"""Exact attention over a sequence whose tokens lie on several ranks, with gradients."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, overload

import torch
from torch import Tensor

from tokenring.call import Attention
from tokenring.check_call import check_attention, layout_of
from tokenring.partition import Layout, Partition
from tokenring.passes import attend, attend_backward, with_plain_rows
from tokenring.recompute import kept_or_computed
from tokenring.torch_ops import traced_attention

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
