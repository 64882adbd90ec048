"""tokenweave: tensor-parallel inference with all-reduce, residual add and norm in one operation.

Importing does no work: torch, transformers and the native module come with the first name used.
"""

from typing import TYPE_CHECKING, Any

from tokenfabric.lazy import load

if TYPE_CHECKING:
    from tokenweave.config import WeaveConfig
    from tokenweave.integrations.loader import from_pretrained
    from tokenweave.integrations.sharded_model import parallelize, restore
    from tokenweave.layers import FusedAllReduceRMSNorm
    from tokenweave.ops import (
        all_gather,
        all_reduce,
        allreduce_rmsnorm,
        broadcast,
        partial_sum_buffer,
        reduce_scatter,
    )
    from tokenweave.parallel_style import FusedNormParallel, PartialRowwiseParallel
    from tokenweave.quantized import allreduce_rmsnorm_quantized
    from tokenweave.quantized_output import QuantizedOutput
    from tokenweave.row_parallel import PartialRowParallelLinear
    from tokenweave.split import plan_split
    from tokenweave.split_plan import SplitPlan

__all__ = [
    "FusedAllReduceRMSNorm",
    "FusedNormParallel",
    "PartialRowParallelLinear",
    "PartialRowwiseParallel",
    "QuantizedOutput",
    "SplitPlan",
    "WeaveConfig",
    "all_gather",
    "all_reduce",
    "allreduce_rmsnorm",
    "allreduce_rmsnorm_quantized",
    "broadcast",
    "from_pretrained",
    "parallelize",
    "partial_sum_buffer",
    "plan_split",
    "reduce_scatter",
    "restore",
]

_LAZY = {
    "FusedAllReduceRMSNorm": "tokenweave.layers",
    "FusedNormParallel": "tokenweave.parallel_style",
    "PartialRowParallelLinear": "tokenweave.row_parallel",
    "PartialRowwiseParallel": "tokenweave.parallel_style",
    "QuantizedOutput": "tokenweave.quantized_output",
    "SplitPlan": "tokenweave.split_plan",
    "WeaveConfig": "tokenweave.config",
    "all_gather": "tokenweave.ops",
    "all_reduce": "tokenweave.ops",
    "allreduce_rmsnorm": "tokenweave.ops",
    "allreduce_rmsnorm_quantized": "tokenweave.quantized",
    "broadcast": "tokenweave.ops",
    "from_pretrained": "tokenweave.integrations.loader",
    "parallelize": "tokenweave.integrations.sharded_model",
    "partial_sum_buffer": "tokenweave.ops",
    "plan_split": "tokenweave.split",
    "reduce_scatter": "tokenweave.ops",
    "restore": "tokenweave.integrations.sharded_model",
}


def __getattr__(name: str) -> Any:
    return load(__name__, name, _LAZY)


def __dir__() -> list[str]:
    return sorted(__all__)
