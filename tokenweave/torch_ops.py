"""torch.ops.tokenweave.*: the collectives of ops.py as torch operators, for torch.compile and FX.

Operators take the world's name (World.group_name) instead of the world. Each has a fake for tracing
and an autograd entry that refuses inputs which require a gradient. Defined through
torch.library.Library and not
custom_op: that costs 4 to 7 us more a call.
"""

from collections.abc import Callable
from typing import Any

import torch

from tokenfabric.errors import ConfigError
from tokenfabric.world import find_world
from tokenweave.forms import NormKind, Numerics
from tokenweave.plan import Algorithm, ResidualLayout

# Kept alive for as long as the operators are to exist.
_LIBRARY = torch.library.Library("tokenweave", "FRAGMENT")

NORM_ARGUMENTS = (
    "Tensor weight, Tensor? bias, float eps, float weight_offset, str residual_layout, "
    "str algorithm, str group_name, str norm='rms_norm', Tensor? norm_bias=None, "
    "str numerics='fused'"
)


def traced_allreduce_rmsnorm(
    x_partial: torch.Tensor,
    residual: torch.Tensor | None,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    eps: float,
    weight_offset: float,
    residual_layout: ResidualLayout,
    algorithm: Algorithm,
    group_name: str,
    norm: NormKind,
    norm_bias: torch.Tensor | None,
    numerics: Numerics,
    residual_dtype: torch.dtype | None,
    out: torch.Tensor | None,
    residual_out: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Express `ops.allreduce_rmsnorm` by the operators, inside torch.compile."""
    rest = (weight, bias, eps, weight_offset, residual_layout, algorithm, group_name, norm,
            norm_bias, numerics)  # fmt: skip
    if residual is not None and residual_out is residual:
        normed = torch.ops.tokenweave.allreduce_rmsnorm_(x_partial, residual, *rest)
        return (normed if out is None else out.copy_(normed)), residual
    normed, new_residual = torch.ops.tokenweave.allreduce_rmsnorm(
        x_partial, residual, *rest, residual_dtype
    )
    return (
        normed if out is None else out.copy_(normed),
        new_residual if residual_out is None else residual_out.copy_(new_residual),
    )


def _allreduce_rmsnorm(
    x_partial: torch.Tensor,
    residual: torch.Tensor | None,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    eps: float,
    weight_offset: float,
    residual_layout: ResidualLayout,
    algorithm: Algorithm,
    group_name: str,
    norm: NormKind = "rms_norm",
    norm_bias: torch.Tensor | None = None,
    numerics: Numerics = "fused",
    residual_dtype: torch.dtype | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    from tokenweave import ops

    return ops.allreduce_rmsnorm(
        x_partial,
        residual,
        weight,
        world=find_world(group_name),
        eps=eps,
        bias=bias,
        weight_offset=weight_offset,
        residual_layout=residual_layout,
        algorithm=algorithm,
        norm=norm,
        norm_bias=norm_bias,
        numerics=numerics,
        residual_dtype=residual_dtype,
    )


def _allreduce_rmsnorm_inplace(
    x_partial: torch.Tensor,
    residual: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    eps: float,
    weight_offset: float,
    residual_layout: ResidualLayout,
    algorithm: Algorithm,
    group_name: str,
    norm: NormKind = "rms_norm",
    norm_bias: torch.Tensor | None = None,
    numerics: Numerics = "fused",
) -> torch.Tensor:
    from tokenweave import ops

    normed, _ = ops.allreduce_rmsnorm(
        x_partial,
        residual,
        weight,
        world=find_world(group_name),
        eps=eps,
        bias=bias,
        weight_offset=weight_offset,
        residual_layout=residual_layout,
        algorithm=algorithm,
        norm=norm,
        norm_bias=norm_bias,
        numerics=numerics,
        residual_out=residual,
    )
    return normed


def _all_reduce(x: torch.Tensor, algorithm: Algorithm, group_name: str) -> torch.Tensor:
    from tokenweave import ops

    return ops.all_reduce(x, world=find_world(group_name), algorithm=algorithm)


def _reduce_scatter(x: torch.Tensor, group_name: str) -> torch.Tensor:
    from tokenweave import ops

    return ops.reduce_scatter(x, world=find_world(group_name))


def _all_gather(
    x: torch.Tensor, dim: int, sizes: list[int] | None, group_name: str
) -> torch.Tensor:
    from tokenweave import ops

    return ops.all_gather(x, world=find_world(group_name), dim=dim, sizes=sizes)


def _broadcast_inplace(x: torch.Tensor, src: int, group_name: str) -> None:
    from tokenweave import ops

    ops.broadcast(x, world=find_world(group_name), src=src)


def _own_rows(x: torch.Tensor, group_name: str) -> torch.Tensor:
    world = find_world(group_name)
    # The share of plan.split_rows in arithmetic that symbolic sizes have.
    num_rows = (x.numel() // x.shape[-1] + world.size - 1 - world.rank) // world.size
    return x.new_empty((num_rows, x.shape[-1]))


def _fake_allreduce_rmsnorm(
    x_partial: torch.Tensor,
    residual: torch.Tensor | None,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    eps: float,
    weight_offset: float,
    residual_layout: ResidualLayout,
    algorithm: Algorithm,
    group_name: str,
    norm: NormKind = "rms_norm",
    norm_bias: torch.Tensor | None = None,
    numerics: Numerics = "fused",
    residual_dtype: torch.dtype | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    kept = residual_dtype if residual is None else residual.dtype
    return x_partial.new_empty(x_partial.shape), fake_residual(
        x_partial, residual_layout, kept, group_name
    )


def fake_residual(
    x: torch.Tensor, residual_layout: ResidualLayout, dtype: torch.dtype | None, group_name: str
) -> torch.Tensor:
    """Return an empty new residual of x, of its dtype when dtype is None."""
    rows = _own_rows(x, group_name) if residual_layout == "row_sharded" else x
    return rows.new_empty(rows.shape, dtype=dtype or x.dtype)


def _fake_same_shape(x: torch.Tensor, *rest: object) -> torch.Tensor:
    return x.new_empty(x.shape)


def _fake_all_gather(
    x: torch.Tensor, dim: int, sizes: list[int] | None, group_name: str
) -> torch.Tensor:
    shape = list(x.shape)
    shape[dim] = sum(sizes) if sizes is not None else shape[dim] * find_world(group_name).size
    return x.new_empty(shape)


def _fake_nothing(x: torch.Tensor, *rest: object) -> None:
    return None


def _refusing_gradients(name: str) -> Callable[..., Any]:
    """Return the autograd entry of an operator: on to the kernel, unless a gradient is wanted."""

    def entry(*args: Any) -> Any:
        if torch.is_grad_enabled():
            wanting = [a for a in args if isinstance(a, torch.Tensor) and a.requires_grad]
            if wanting:
                raise ConfigError(
                    f"torch.ops.tokenweave.{name} got {len(wanting)} tensor(s) that require a "
                    "gradient, and it has none: call it under torch.no_grad() or "
                    "torch.inference_mode()"
                )
        with torch._C._AutoDispatchBelowAutograd():
            return getattr(torch.ops.tokenweave, name)(*args)

    return entry


def define(name: str, signature: str, kernel: Callable[..., Any], fake: Callable[..., Any]) -> None:
    """Define torch.ops.tokenweave.<name>."""
    _LIBRARY.define(f"{name}({signature}")
    # The same function for both: what runs is the world's choice, and a tensor on another device
    # than the world is refused by name.
    _LIBRARY.impl(name, kernel, "CPU")
    _LIBRARY.impl(name, kernel, "CUDA")
    _LIBRARY.impl(name, _refusing_gradients(name), "Autograd")
    torch.library.register_fake(f"tokenweave::{name}", fake, lib=_LIBRARY)


define(
    "allreduce_rmsnorm",
    f"Tensor x_partial, Tensor? residual, {NORM_ARGUMENTS}, ScalarType? residual_dtype=None) "
    "-> (Tensor, Tensor)",
    _allreduce_rmsnorm,
    _fake_allreduce_rmsnorm,
)
define(
    "allreduce_rmsnorm_",
    f"Tensor x_partial, Tensor(a!) residual, {NORM_ARGUMENTS}) -> Tensor",
    _allreduce_rmsnorm_inplace,
    _fake_same_shape,
)
define(
    "all_reduce",
    "Tensor x, str algorithm, str group_name) -> Tensor",
    _all_reduce,
    _fake_same_shape,
)
define("reduce_scatter", "Tensor x, str group_name) -> Tensor", _reduce_scatter, _own_rows)
define(
    "all_gather",
    "Tensor x, int dim, SymInt[]? sizes, str group_name) -> Tensor",
    _all_gather,
    _fake_all_gather,
)
define(
    "broadcast_",
    "Tensor(a!) x, int src, str group_name) -> ()",
    _broadcast_inplace,
    _fake_nothing,
)
