"""What the user asks tokenweave for. What is decided from it is a plan (shard_plan.py, plan.py)."""

from dataclasses import dataclass
from typing import Literal, get_args

from tokenfabric.errors import ConfigError

ReductionKind = Literal["fused", "gloo", "none"]


@dataclass(frozen=True, kw_only=True, slots=True)
class WeaveConfig:
    """How a model is run over the ranks of a world.

    Raises:
        ConfigError: a field has a value that does not exist.
    """

    reduction: ReductionKind = "fused"
    """How the partial sums of the blocks become the next block's input.

    "fused": all-reduce, residual add and norm in one operation. "gloo": torch.distributed's
    all_reduce, then torch's norm; the baseline to measure against. "none": no communication at all,
    so the numbers are WRONG; only for measuring what a free reduction would give.
    """

    def __post_init__(self) -> None:
        kinds = get_args(ReductionKind)
        if self.reduction not in kinds:
            raise ConfigError(
                f"reduction must be one of {', '.join(kinds)}; got {self.reduction!r}"
            )
