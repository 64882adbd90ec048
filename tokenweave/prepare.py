"""From a reduction on a world to what runs it: one native call, on several hosts a walk."""

from typing import TYPE_CHECKING

import torch

from tokenfabric.errors import ConfigError
from tokenweave.cuda.call import CudaReduction
from tokenweave.cuda.prepare import cheapest_layout_on_gpus, prepare_cuda
from tokenweave.forms import NormKind, Numerics
from tokenweave.hierarchical import HierarchicalReduction
from tokenweave.host_plan import plan_forward_pass, plan_hierarchical
from tokenweave.native_call import PreparedReduction
from tokenweave.plan import Algorithm, Output, ResidualLayout, plan_residual_layout
from tokenweave.plan_on_world import plan_on
from tokenweave.quantized_output import QuantizedOutput

if TYPE_CHECKING:
    from tokenfabric.world import World

Prepared = PreparedReduction | HierarchicalReduction | CudaReduction


def prepare_reduction(
    world: "World",
    operation: int,
    *,
    num_tokens: int,
    hidden: int,
    dtype: torch.dtype,
    weight_dtype: torch.dtype | None = None,
    algorithm: Algorithm = "auto",
    output: Output = "private",
    residual_layout: ResidualLayout = "replicated",
    has_residual: bool = True,
    residual_dtype: torch.dtype | None = None,
    norm: NormKind = "rms_norm",
    numerics: Numerics = "fused",
    quantized: QuantizedOutput | None = None,
    sm_budget: int | None = None,
) -> Prepared:
    """Plan a reduction of [num_tokens, hidden] and settle all of it but the tensors.

    Not collective; calling the result is.

    Args:
        world: open; where the result may be called.
        operation: native.weave.OP_*.
        num_tokens, hidden, dtype: the partial sums.
        weight_dtype: of the norm; default: dtype.
        algorithm, output, residual_layout, has_residual: see `tokenweave.plan.plan_reduction`.
        residual_dtype, norm, numerics, quantized: see `tokenweave.allreduce_rmsnorm_quantized`;
            other than the defaults on one host only.
        sm_budget: on GPUs, SMs that the kernel may take; equal on all ranks.

    Raises:
        ConfigError: the world cannot do it, or is closed.
    """
    if world.cuda is not None:
        return prepare_cuda(
            world,
            num_tokens=num_tokens,
            hidden=hidden,
            dtype=dtype,
            weight_dtype=weight_dtype,
            algorithm=algorithm,
            output=output,
            residual_layout=residual_layout,
            has_residual=has_residual,
            residual_dtype=residual_dtype,
            norm=norm,
            numerics=numerics,
            quantized=quantized,
            sm_budget=sm_budget,
        )
    if world.layout.num_hosts == 1:
        kept_bytes = hidden * (residual_dtype or dtype).itemsize
        normed_bytes = hidden * dtype.itemsize
        if quantized is not None:
            normed_bytes = quantized.row_bytes(hidden, dtype.itemsize)
        plan = plan_on(
            world, dtype, num_tokens, hidden, algorithm, output, residual_layout, has_residual,
            exchanged_row_bytes=normed_bytes + kept_bytes,
        )  # fmt: skip
        return PreparedReduction(
            world,
            plan,
            operation,
            num_tokens=num_tokens,
            hidden=hidden,
            dtype=dtype,
            weight_dtype=weight_dtype,
            residual_dtype=residual_dtype,
            norm=norm,
            numerics=numerics,
            quantized=quantized,
        )
    is_plain = norm == "rms_norm" and numerics == "fused" and quantized is None
    if not is_plain or residual_dtype not in (None, dtype):
        raise ConfigError(
            f"between hosts there is rms_norm with fused numerics and a residual like x_partial; "
            f"norm {norm!r}, numerics {numerics!r}, residual {residual_dtype or dtype} and "
            f"quantised output {quantized} together need ranks on one host"
        )
    if algorithm != "auto":
        raise ConfigError(
            f"algorithm {algorithm!r} is for ranks on one host, these lie on "
            f"{world.layout.num_hosts}: use 'auto'"
        )
    try:
        host_plan = plan_hierarchical(
            num_tokens=num_tokens,
            hidden=hidden,
            element_size=dtype.itemsize,
            num_hosts=world.layout.num_hosts,
            local_size=world.layout.local_size,
            output=output,
            residual_layout=residual_layout,
            has_residual=has_residual,
        )
    except ValueError as error:
        raise ConfigError(str(error)) from None
    return HierarchicalReduction(
        world, host_plan, operation, dtype=dtype, weight_dtype=weight_dtype
    )


def cheapest_residual_layout(
    world: "World", *, num_tokens: int, hidden: int, dtype: torch.dtype
) -> ResidualLayout:
    """Return the layout for reductions whose residual nobody but the next of them reads.

    With row owners the other rows of the residual need not travel. One-shot on one host, and one
    message between hosts, reduce or finish rows in more places and need them there.
    """
    if world.cuda is not None:
        return cheapest_layout_on_gpus(world, num_tokens=num_tokens, hidden=hidden, dtype=dtype)
    if world.layout.num_hosts == 1:
        return plan_residual_layout(
            num_tokens=num_tokens,
            hidden=hidden,
            element_size=dtype.itemsize,
            world_size=world.size,
            is_oversubscribed=world.placement.is_oversubscribed,
        )
    return plan_forward_pass(
        num_tokens=num_tokens,
        hidden=hidden,
        element_size=dtype.itemsize,
        num_hosts=world.layout.num_hosts,
        local_size=world.layout.local_size,
    ).residual_layout
