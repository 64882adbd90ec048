"""What one block of attention gives: outputs of some rows, normalised by the keys of that block."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Partial:
    """out = softmax(scores) v and lse = log(sum(exp(scores))) over the keys of one block.

    A row with lse -inf saw no key: what its out holds means nothing and is never read.
    """

    out: Tensor
    """[batch, rows, heads, head_dim_v]; fp32, bf16, fp16 or fp64; any strides, the last being 1."""
    lse: Tensor
    """[batch, rows, heads], natural logarithm, fp32 (fp64 with an fp64 out); any strides."""
    row_start: int = 0
    """Which row and head of the whole result the first one here is."""
    head_start: int = 0
