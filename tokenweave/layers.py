"""The fused operation as a module, for people with their own tensor-parallel model."""

from typing import TYPE_CHECKING

import torch
from torch import nn

from tokenfabric.errors import ConfigError
from tokenweave import ops
from tokenweave.forms import NormKind, Numerics
from tokenweave.plan import Algorithm, ResidualLayout

if TYPE_CHECKING:
    from tokenfabric.world import World


class FusedAllReduceRMSNorm(nn.Module):
    """All-reduce + bias + residual + RMSNorm (or LayerNorm) in one step: `(x_partial, residual) ->
    (normed, residual)`.

    Takes the place of `dist.all_reduce(x); residual += x; normed = norm(residual)` after a
    row-parallel linear layer that keeps its output as a partial sum. See
    `tokenweave.allreduce_rmsnorm` for the formula, the shapes and who owns what. Inference only.
    """

    def __init__(
        self,
        hidden_size: int,
        *,
        world: "World",
        eps: float = 1e-6,
        weight: torch.Tensor | None = None,
        bias: torch.Tensor | None = None,
        weight_offset: float = 0.0,
        residual_layout: ResidualLayout = "replicated",
        algorithm: Algorithm = "auto",
        dtype: torch.dtype | None = None,
        norm: NormKind = "rms_norm",
        norm_bias: torch.Tensor | None = None,
        numerics: Numerics = "fused",
        residual_dtype: torch.dtype | None = None,
    ) -> None:
        """Build the module. Not collective.

        Args:
            hidden_size: width of a token.
            world: where the reduction runs; held by reference, close it yourself.
            eps, weight_offset, residual_layout, algorithm, norm, numerics, residual_dtype: see
                `tokenweave.allreduce_rmsnorm`.
            weight: [hidden_size]; ones when None. The tensor itself becomes the parameter.
            bias: [hidden_size] bias of the row-parallel layer before, added once; none when None.
            dtype: of a weight made here; torch's default when None.
            norm_bias: [hidden_size] of a layer_norm; none when None.

        Raises:
            ConfigError: weight or a bias has another shape.
        """
        super().__init__()
        for name, vector in (("weight", weight), ("bias", bias), ("norm_bias", norm_bias)):
            if vector is not None and vector.shape != (hidden_size,):
                raise ConfigError(f"{name} must be ({hidden_size},), got {tuple(vector.shape)}")
        if weight is None:
            weight = torch.ones(hidden_size, dtype=dtype)
        self.hidden_size = hidden_size
        self.world = world
        self.eps = eps
        self.weight_offset = weight_offset
        self.residual_layout: ResidualLayout = residual_layout
        self.algorithm: Algorithm = algorithm
        self.norm: NormKind = norm
        self.numerics: Numerics = numerics
        self.residual_dtype = residual_dtype
        self.weight = nn.Parameter(weight.detach(), requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)
        self.norm_bias = (
            None if norm_bias is None else nn.Parameter(norm_bias.detach(), requires_grad=False)
        )

    def forward(
        self, x_partial: torch.Tensor, residual: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (normed, residual). Collective; see `tokenweave.allreduce_rmsnorm`."""
        return ops.allreduce_rmsnorm(
            x_partial,
            residual,
            self.weight,
            world=self.world,
            eps=self.eps,
            bias=self.bias,
            weight_offset=self.weight_offset,
            residual_layout=self.residual_layout,
            algorithm=self.algorithm,
            norm=self.norm,
            norm_bias=self.norm_bias,
            numerics=self.numerics,
            residual_dtype=self.residual_dtype,
        )

    def extra_repr(self) -> str:
        return (
            f"{self.hidden_size}, eps={self.eps}, ranks={self.world.size}, "
            f"residual_layout={self.residual_layout!r}, algorithm={self.algorithm!r}, "
            f"norm={self.norm!r}, numerics={self.numerics!r}"
        )
