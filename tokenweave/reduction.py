"""How partial sums become the next block's input: the strategies behind WeaveConfig.reduction.

A strategy is chosen once, when a model is parallelized; executor.py and the LM head only call it.
The fused operation itself is in ops.py.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from tokenfabric import native
from tokenfabric.errors import ConfigError
from tokenfabric.world import World
from tokenweave import ops
from tokenweave.config import ReductionKind, WeaveConfig
from tokenweave.plan import ResidualLayout, split_rows
from tokenweave.prepare import cheapest_residual_layout, prepare_reduction


@dataclass(frozen=True, slots=True)
class Norm:
    """The RMSNorm after a reduction: s * rsqrt(mean(s^2) + eps) * (weight_offset + weight)."""

    module: nn.Module
    """Owner of `weight` [hidden]. Asked at every call, so a changed weight is never missed."""
    eps: float
    weight_offset: float = 0.0
    """1.0 for models that store w of (1 + w)."""

    @property
    def weight(self) -> Tensor:
        weight = self.module.weight
        assert isinstance(weight, Tensor)
        return weight


class ReduceNorm(Protocol):
    """One reduction of a forward pass; every rank calls it with the same shapes and order."""

    def __call__(
        self,
        x_partial: Tensor,
        residual: Tensor | None,
        norm: Norm,
        bias: Tensor | None,
        out: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Return (normed, residual_new) of s = sum_r(x_partial_r) + bias + residual.

        Args:
            x_partial: [..., hidden]; may be overwritten.
            residual: what the previous call returned, or None before the first; may be overwritten
                unless the residuals are kept.
            norm: the norm of the block that reads the result.
            bias: [hidden], added once.
            out: [..., hidden] private memory that `normed` may be written to; None: new memory.
        """
        ...


class Reduction(Protocol):
    """The communication of a tensor-parallel model."""

    def prepare(
        self, num_tokens: int, hidden: int, dtype: torch.dtype, *, keep_residuals: bool
    ) -> ReduceNorm:
        """Return the reduction for every step of one forward pass over `num_tokens` tokens.

        Args:
            num_tokens: rows of the partial sums.
            hidden: columns of the partial sums.
            dtype: of the partial sums and the residual.
            keep_residuals: each returned residual is complete and is not overwritten later.
        """
        ...

    def partial_sum_buffer(self, num_tokens: int, hidden: int, dtype: torch.dtype) -> Tensor | None:
        """Return where the next partial sum is best written, [num_tokens, hidden], if anywhere."""
        ...

    def gather_columns(self, x: Tensor, sizes: tuple[int, ...]) -> Tensor:
        """Return the ranks' columns `x` [..., sizes[rank]] side by side, [..., sum(sizes)]."""
        ...


# Below this a copy in cache costs less than making the tensor that saves it (about 3 us).
_WORTH_A_VIEW_BYTES = 64 << 10


class FusedReduction:
    """All-reduce, bias, residual add and norm in one operation over shared memory."""

    def __init__(self, world: World):
        self._world = world

    def prepare(
        self, num_tokens: int, hidden: int, dtype: torch.dtype, *, keep_residuals: bool
    ) -> ReduceNorm:
        # For a whole pass. Whoever asked for the residuals needs all rows of them.
        layout: ResidualLayout = "replicated"
        if not keep_residuals:
            layout = cheapest_residual_layout(
                self._world, num_tokens=num_tokens, hidden=hidden, dtype=dtype
            )
        return _FusedStep(
            self._world, layout, num_tokens, hidden, dtype, keep_residuals=keep_residuals
        )

    def partial_sum_buffer(self, num_tokens: int, hidden: int, dtype: torch.dtype) -> Tensor | None:
        if num_tokens * hidden * dtype.itemsize < _WORTH_A_VIEW_BYTES:
            return None
        return ops.partial_sum_buffer(self._world, num_tokens, hidden, dtype)

    def gather_columns(self, x: Tensor, sizes: tuple[int, ...]) -> Tensor:
        return ops.all_gather(x, world=self._world, dim=-1, sizes=sizes)


class _FusedStep:
    """Implements ReduceNorm. What does not change between the steps of a pass is settled once."""

    def __init__(
        self,
        world: World,
        layout: ResidualLayout,
        num_tokens: int,
        hidden: int,
        dtype: torch.dtype,
        *,
        keep_residuals: bool,
    ):
        self._world = world
        self._reduce = prepare_reduction(
            world,
            native.weave.OP_ALLREDUCE_RMSNORM,
            num_tokens=num_tokens,
            hidden=hidden,
            dtype=dtype,
            residual_layout=layout,
        )
        self._dtype = dtype
        self._is_in_place = not keep_residuals
        start, stop = split_rows(num_tokens, world.size)[world.rank]
        self._own_rows = (stop - start, hidden) if layout == "row_sharded" else None

    def __call__(
        self,
        x_partial: Tensor,
        residual: Tensor | None,
        norm: Norm,
        bias: Tensor | None,
        out: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        weight, dtype = norm.weight, self._dtype
        if x_partial.dtype is not dtype or weight.dtype is not dtype:
            raise ConfigError(
                f"the model mixes dtypes: activations {dtype}, partial sum {x_partial.dtype}, norm "
                f"{weight.dtype}; convert all of it"
            )
        if out is None:
            out = torch.empty(x_partial.shape, dtype=dtype)
        if residual is not None and self._is_in_place:
            residual_out = residual
        else:
            residual_out = torch.empty(self._own_rows or x_partial.shape, dtype=dtype)
        self._reduce(
            self._world,
            x_partial.contiguous(),
            residual,
            bias,
            weight,
            out.data_ptr(),
            residual_out,
            norm.eps,
            norm.weight_offset,
        )
        return out, residual_out


class GlooReduction:
    """torch.distributed's all_reduce on the world's group, then torch's add and norm."""

    def __init__(self, world: World):
        self._world = world

    def prepare(
        self, num_tokens: int, hidden: int, dtype: torch.dtype, *, keep_residuals: bool
    ) -> ReduceNorm:
        return self._reduce_norm

    def _reduce_norm(
        self,
        x_partial: Tensor,
        residual: Tensor | None,
        norm: Norm,
        bias: Tensor | None,
        out: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        if self._world.size > 1:
            dist.all_reduce(x_partial, group=self._world.group)
        return _add_norm(x_partial, residual, norm, bias)

    def partial_sum_buffer(self, num_tokens: int, hidden: int, dtype: torch.dtype) -> Tensor | None:
        return None

    def gather_columns(self, x: Tensor, sizes: tuple[int, ...]) -> Tensor:
        if self._world.size == 1:
            return x
        # gloo gathers equal shapes only.
        padded = F.pad(x, (0, max(sizes) - x.shape[-1]))
        pieces = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(pieces, padded, group=self._world.group)
        return torch.cat([p[..., :size] for p, size in zip(pieces, sizes, strict=True)], dim=-1)


class NoReduction:
    """No communication: each rank goes on with its own partial sum. The numbers are wrong.

    The norm is the fused operation's in a world of one: with torch's slower one, this would be no
    ceiling.
    """

    def __init__(self, world: World):
        self._world = world
        self._alone = FusedReduction(World(None, num_threads=world.num_threads))

    def prepare(
        self, num_tokens: int, hidden: int, dtype: torch.dtype, *, keep_residuals: bool
    ) -> ReduceNorm:
        return self._alone.prepare(num_tokens, hidden, dtype, keep_residuals=keep_residuals)

    def partial_sum_buffer(self, num_tokens: int, hidden: int, dtype: torch.dtype) -> Tensor | None:
        return None

    def gather_columns(self, x: Tensor, sizes: tuple[int, ...]) -> Tensor:
        rank = self._world.rank
        return F.pad(x, (sum(sizes[:rank]), sum(sizes[rank + 1 :])))


def make_reduction(config: WeaveConfig, world: World) -> Reduction:
    """Return the strategy that `config` asks for."""
    strategies: dict[ReductionKind, type[FusedReduction | GlooReduction | NoReduction]] = {
        "fused": FusedReduction,
        "gloo": GlooReduction,
        "none": NoReduction,
    }
    return strategies[config.reduction](world)


def _add_norm(
    x_reduced: Tensor, residual: Tensor | None, norm: Norm, bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    if bias is not None:
        x_reduced = x_reduced + bias
    if residual is not None:
        x_reduced = x_reduced + residual
    weight = norm.weight if norm.weight_offset == 0.0 else norm.weight + norm.weight_offset
    return F.rms_norm(x_reduced, weight.shape, weight, norm.eps), x_reduced
