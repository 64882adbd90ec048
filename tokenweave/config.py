"""What the user asks tokenweave for. What is decided from it is a plan (shard_plan.py,
split_plan.py)."""

from dataclasses import dataclass
from typing import Literal, get_args

from tokenfabric.errors import ConfigError

ReductionKind = Literal["fused", "gloo", "none"]
Split = Literal["auto", "never"] | int
Overlap = Literal["auto", "on", "off"]
Graphs = Literal["auto", "off"]


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

    "auto": where a plan expects to gain from it: not on ranks of CPU cores, nor on GPUs without a
    device table (tables/*.json), of which it knows nothing. "never": nowhere. A number: after so
    many tokens of the batch, counted sequence after sequence, wherever there are more of them and
    more than one a sequence; for tests and measurements. Tokens that cannot be split (a cache or
    mask of an unknown kind) are not; the plan says why.
    """

    overlap: Overlap = "auto"
    """Whether the reductions of a split pass run beside its blocks: on GPUs on a stream of their
    own, on CPUs on a thread.

    "auto": on GPUs, and if the ranks have cores for it. "on": in any case; needs fused reductions
    on one host. "off": all stages one after the other. The results are the same bits.
    """

    graphs: Graphs = "auto"
    """Whether small passes on GPUs are CUDA graphs from their second time on.

    "auto": wherever nothing of a pass is decided on the host and keys and values stay where they
    are (a StaticCache, or none); graph_plan.py says the limits. "off": every launch from the host.
    The results are the same bits. Ranks on CPUs have none.
    """

    def __post_init__(self) -> None:
        for name, kinds in (
            ("reduction", get_args(ReductionKind)),
            ("overlap", get_args(Overlap)),
            ("graphs", get_args(Graphs)),
        ):
            value = getattr(self, name)
            if value not in kinds:
                raise ConfigError(f"{name} must be one of {', '.join(kinds)}; got {value!r}")
        is_number = isinstance(self.split, int) and not isinstance(self.split, bool)
        if not (is_number and int(self.split) >= 1) and self.split not in ("auto", "never"):
            raise ConfigError(
                f"split must be auto, never or a number of tokens of at least 1; got {self.split!r}"
            )
