"""What the user asks tokenweave for. What is decided from it is a plan (shard_plan.py,
split_plan.py)."""

from dataclasses import dataclass
from typing import Literal, get_args

from tokenfabric.errors import ConfigError

ReductionKind = Literal["fused", "gloo", "none"]
Split = Literal["auto", "never"] | int
Overlap = Literal["auto", "on", "off"]


@dataclass(frozen=True, kw_only=True, slots=True)
class WeaveConfig:
    """How a model is run over the ranks of a world. Equal on all ranks.

    Raises:
        ConfigError: a field has a value that does not exist.
    """

    reduction: ReductionKind = "fused"
    """How the partial sums of the blocks become the next block's input.

    "fused": all-reduce, residual add and norm in one operation. "gloo": torch.distributed's
    all_reduce, then torch's norm; the baseline to measure against. "none": no communication at all,
    so the numbers are WRONG; only for measuring what a free reduction would give.
    """

    split: Split = "auto"
    """Whether the tokens of a forward pass are split in two halves, so that the reduction of one
    can run beside the blocks of the other.

    "auto": where a plan expects to gain from it, which it does not on ranks of CPU cores. "never":
    nowhere. A number: after so many tokens of the batch, counted sequence after sequence, wherever
    there are more of them and more than one a sequence; for tests and measurements. Tokens that
    cannot be split (a cache or mask of an unknown kind) are not; the plan says why.
    """

    overlap: Overlap = "auto"
    """Whether the reductions of a split pass run on a thread of their own.

    "auto": if the ranks have cores for it. "on": in any case; needs fused reductions on one host.
    "off": all stages one after the other. The results are the same bits.
    """

    def __post_init__(self) -> None:
        for name, kinds in (
            ("reduction", get_args(ReductionKind)),
            ("overlap", get_args(Overlap)),
        ):
            value = getattr(self, name)
            if value not in kinds:
                raise ConfigError(f"{name} must be one of {', '.join(kinds)}; got {value!r}")
        is_number = isinstance(self.split, int) and not isinstance(self.split, bool)
        if not (is_number and int(self.split) >= 1) and self.split not in ("auto", "never"):
            raise ConfigError(
                f"split must be auto, never or a number of tokens of at least 1; got {self.split!r}"
            )
