"""A row-parallel linear layer that stops before its all-reduce, for people with their own model."""

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenfabric.errors import ConfigError
from tokenweave import checks, ops

if TYPE_CHECKING:
    from tokenfabric.world import World


class PartialRowParallelLinear(nn.Module):
    """x W^T over this rank's columns of W: the partial sum that `allreduce_rmsnorm` takes.

    `bias`, complete on every rank, is not added here, or the sum over ranks would have it once per
    rank: hand it to the reduction, which adds it once (`FusedAllReduceRMSNorm(bias=linear.bias)`).
    Inference only.

    The result may lie in shared memory where the world's next `allreduce_rmsnorm` or `all_reduce`
    reads it without a copy: pass it there before the next partial sum is made, and do not keep it.
    """

    def __init__(self, weight: Tensor, *, world: "World", bias: Tensor | None = None) -> None:
        """Build the module. Not collective.

        Args:
            weight: [out_features, local in_features], this rank's columns; the tensor itself
                becomes the parameter.
            world: whose next reduction reads the partial sums; held by reference.
            bias: [out_features] or None.

        Raises:
            ConfigError: weight is no matrix, or bias does not fit it.
        """
        super().__init__()
        if weight.dim() != 2:
            raise ConfigError(
                f"weight must be [out_features, in_features], got {tuple(weight.shape)}"
            )
        if bias is not None and bias.shape != weight.shape[:1]:
            raise ConfigError(f"bias must be ({weight.shape[0]},), got {tuple(bias.shape)}")
        self.world = world
        self.weight = nn.Parameter(weight.detach(), requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)

    @classmethod
    def of(cls, linear: nn.Linear, *, world: "World") -> "PartialRowParallelLinear":
        """Return this rank's share of a complete layer. Not collective.

        Columns are dealt as `torch.chunk` and DTensor's `Shard(1)` do, so that the outputs of a
        `ColwiseParallel` layer fit.

        Args:
            linear: [out_features, in_features], the same on all ranks; it is not changed.
            world: the ranks that share it.

        Raises:
            ConfigError: there are fewer columns than that gives every rank some.
        """
        shares = linear.weight.detach().chunk(world.size, dim=1)
        if len(shares) < world.size:
            raise ConfigError(
                f"{linear.in_features} columns make {len(shares)} shares, too few for the "
                f"{world.size} ranks of the world"
            )
        weight = shares[world.rank].clone(memory_format=torch.contiguous_format)
        return cls(weight, world=world, bias=linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return the partial sum [..., out_features] of x [..., local in_features], without bias.

        Not collective, but all ranks call it for the same number of tokens.
        """
        checks.no_gradient(x=x)
        out_features = self.weight.shape[0]
        num_tokens = x.shape[:-1].numel()
        if torch.compiler.is_compiling():
            return F.linear(x, self.weight)
        out = ops.partial_sum_buffer(self.world, num_tokens, out_features, x.dtype)
        return partial_sum(x, self.weight, out)

    def extra_repr(self) -> str:
        out_features, in_features = self.weight.shape
        return f"in_features={in_features}, out_features={out_features}, ranks={self.world.size}"


def partial_sum(x: Tensor, weight: Tensor, out: Tensor | None) -> Tensor:
    """Return x W^T, written to `out` [tokens, out_features] if that is given.

    Args:
        x: [..., in_features].
        weight: [out_features, in_features].
        out: contiguous memory for the result of all tokens of x, or None.
    """
    if out is None:
        return F.linear(x, weight)
    out_features, in_features = weight.shape
    torch.mm(x.reshape(-1, in_features), weight.t(), out=out)
    return out.view(*x.shape[:-1], out_features)
