"""What an attention call asks for: refused by name, or made the record that it is planned by."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tokenfabric.errors import ConfigError
from tokenring.call import Attention
from tokenring.local_protocol import check_scores
from tokenring.partition import Layout, Partition, partition_tokens

if TYPE_CHECKING:
    from tokenfabric.world import World


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
