"""From a reduction on a world of GPUs to what launches it."""

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from tokenfabric import native
from tokenfabric.cuda.ranks import ONE_SHOT_BLOCK_BYTES, ONE_SHOT_BLOCKS
from tokenfabric.errors import ConfigError
from tokenweave.cuda.call import CudaReduction
from tokenweave.cuda.plan import DEFAULT_SM_BUDGET, CudaReductionPlan, plan_cuda_reduction
from tokenweave.forms import NormKind, Numerics
from tokenweave.native_call import NATIVE_DTYPE
from tokenweave.plan import Algorithm, Output, ResidualLayout
from tokenweave.quantized_output import QuantizedOutput

if TYPE_CHECKING:
    from tokenfabric.world import World
    from tokenweave.cuda.table import MeasuredTable

# That a lane holds side by side; rows of no whole units have fewer kernels.
_UNIT_ELEMENTS = 8


def prepare_cuda(
    world: "World",
    *,
    num_tokens: int,
    hidden: int,
    dtype: torch.dtype,
    weight_dtype: torch.dtype | None,
    algorithm: Algorithm,
    output: Output,
    residual_layout: ResidualLayout,
    has_residual: bool,
    residual_dtype: torch.dtype | None,
    norm: NormKind,
    numerics: Numerics,
    quantized: QuantizedOutput | None,
    sm_budget: int | None = None,
) -> CudaReduction:
    """Plan a reduction and settle all of it but the tensors; see `tokenweave.prepare`.

    Found again in world.prepared. `sm_budget`: SMs that the kernel may take, the same on all ranks.

    Raises:
        ConfigError: the world's GPUs cannot do it.
    """
    if numerics != "fused":
        raise ConfigError(f"numerics {numerics!r} are for ranks on CPUs; on GPUs there is 'fused'")
    if output == "shared":
        raise ConfigError("a SharedOutput is for ranks on CPUs: on GPUs give a SymmetricBuffer")
    budget = DEFAULT_SM_BUDGET if sm_budget is None else sm_budget
    key = ("cuda", num_tokens, hidden, dtype, weight_dtype, algorithm, output, residual_layout,
           has_residual, residual_dtype, norm, quantized, budget)  # fmt: skip
    found: CudaReduction | None = world.prepared.get(key)
    if found is None:
        kept_dtype = residual_dtype or dtype
        result_bytes = hidden * dtype.itemsize
        if quantized is not None:
            result_bytes = quantized.row_bytes(hidden, dtype.itemsize)
        replicates = has_residual and residual_layout == "replicated"
        plan = plan_on_gpus(
            world,
            dtype,
            num_tokens=num_tokens,
            hidden=hidden,
            algorithm="two_shot" if output == "own_rows" else algorithm,
            residual_layout=residual_layout,
            gathered_row_bytes=0
            if output == "own_rows"
            else result_bytes + (hidden * kept_dtype.itemsize if replicates else 0),
            sm_budget=budget,
        )
        found = CudaReduction(
            world,
            plan,
            num_tokens=num_tokens,
            hidden=hidden,
            dtype=dtype,
            weight_dtype=weight_dtype or dtype,
            residual_dtype=kept_dtype,
            is_scattered=output == "own_rows",
            norm=norm,
            quantized=quantized,
            staging_block_bytes=ONE_SHOT_BLOCK_BYTES,
        )
        world.prepared.remember(key, found)
    return found


def plan_on_gpus(
    world: "World",
    dtype: torch.dtype,
    *,
    num_tokens: int,
    hidden: int,
    algorithm: Algorithm = "auto",
    residual_layout: ResidualLayout = "replicated",
    gathered_row_bytes: int | None = None,
    sm_budget: int = DEFAULT_SM_BUDGET,
) -> CudaReductionPlan:
    """Plan a reduction of [num_tokens, hidden] on a world of GPUs; ConfigError where none is
    possible.
    """
    assert world.cuda is not None
    agreed = world.cuda.capability
    if sm_budget > native.cuda.MAX_BLOCKS:
        raise ConfigError(
            f"sm_budget is {sm_budget}, a launch has at most {native.cuda.MAX_BLOCKS} blocks"
        )
    row_bytes = hidden * dtype.itemsize
    if algorithm == "one_shot" and hidden % _UNIT_ELEMENTS:
        raise ConfigError(
            f"one_shot on GPUs needs rows of whole units of {_UNIT_ELEMENTS} elements, got "
            f"{hidden}: use two_shot or auto"
        )

    def fits_staging(num_blocks: int) -> bool:
        rows = (num_tokens, hidden, NATIVE_DTYPE[dtype])
        if hidden % _UNIT_ELEMENTS:
            return False
        return native.cuda.one_shot_block_bytes(*rows, num_blocks) <= ONE_SHOT_BLOCK_BYTES

    # With the most blocks the fewest rows fall to each: what does not fit then never does.
    most = min(sm_budget, ONE_SHOT_BLOCKS)
    try:
        plan = plan_cuda_reduction(
            num_tokens=num_tokens,
            row_bytes=row_bytes,
            world_size=world.size,
            reach=agreed.reach,
            compute_capability=agreed.compute_capability,
            sm_budget=sm_budget,
            algorithm=algorithm,
            residual_layout=residual_layout,
            gathered_row_bytes=gathered_row_bytes,
            one_shot_max_bytes=num_tokens * row_bytes if fits_staging(most) else 0,
            can_multicast=dtype != torch.float32 and hidden % _UNIT_ELEMENTS == 0,
            table=_table(world.cuda.table),
        )
    except ValueError as error:
        raise ConfigError(str(error)) from None
    if plan.algorithm == "one_shot" and not fits_staging(min(plan.num_blocks, most)):
        return replace(plan, num_blocks=most)
    return plan


def cheapest_layout_on_gpus(
    world: "World", *, num_tokens: int, hidden: int, dtype: torch.dtype
) -> ResidualLayout:
    """Return the layout for reductions whose residual nobody but the next of them reads."""
    plan = plan_on_gpus(world, dtype, num_tokens=num_tokens, hidden=hidden)
    return "replicated" if plan.algorithm == "one_shot" or world.size == 1 else "row_sharded"


def _table(data: bytes) -> "MeasuredTable | None":
    if not data:
        return None
    from tokenweave.cuda.table_file import parse_table

    return parse_table(data, "TOKENFABRIC_CUDA_TABLE").table()
