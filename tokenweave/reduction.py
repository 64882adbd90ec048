"""How partial sums become the next block's input: the strategies behind WeaveConfig.reduction.

A strategy is chosen once, when a model is parallelized; executor.py and the LM head only call it.
The fused operation itself is in ops.py.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from tokenfabric.errors import ConfigError
from tokenfabric.world import World
from tokenweave import ops
from tokenweave.config import ReductionKind, WeaveConfig
from tokenweave.cuda.reduction import GpuReduction
from tokenweave.pass_memory import PassMemory, PassPart, PrivatePassMemory
from tokenweave.pass_reduction import prepare_of_pass
from tokenweave.passes import Passes
from tokenweave.prepare import Prepared
from tokenweave.reduction_protocol import Norm, ReduceNorm, Reduction
from tokenweave.split_plan import ReductionChoice

__all__ = [
    "FusedReduction",
    "GlooReduction",
    "NoReduction",
    "Norm",
    "ReduceNorm",
    "Reduction",
    "make_reduction",
]


# Below this a copy in cache costs less than making the tensor that saves it (about 3 us).
_WORTH_A_VIEW_BYTES = 64 << 10


class FusedReduction:
    """All-reduce, bias, residual add and norm in one operation over shared memory."""

    def __init__(self, world: World, passes: Passes | None = None):
        """Take the ranks, and how passes are run; default: as WeaveConfig() says."""
        self._world = world
        self.passes = Passes(world) if passes is None else passes
        self._is_lent = False

    def memory(self, num_tokens: int, hidden: int, dtype: torch.dtype) -> PassMemory:
        return PrivatePassMemory(num_tokens, hidden, dtype, self._world.device)

    def held_memory(self) -> object:
        return None

    def prepare(
        self,
        num_tokens: int,
        hidden: int,
        dtype: torch.dtype,
        *,
        keep_residuals: bool,
        choice: ReductionChoice | None = None,
        part: PassPart | None = None,
    ) -> ReduceNorm:
        prepared, own_rows = prepare_of_pass(
            self._world, num_tokens, hidden, dtype, keep_residuals=keep_residuals, choice=choice
        )
        self._is_lent = False
        return _FusedStep(
            self, self._world, prepared, dtype, own_rows, is_in_place=not keep_residuals
        )

    def partial_sum_buffer(self, num_tokens: int, hidden: int, dtype: torch.dtype) -> Tensor | None:
        world, num_bytes = self._world, num_tokens * hidden * dtype.itemsize
        if num_bytes < _WORTH_A_VIEW_BYTES:
            return None
        if self.passes.lends and not self._is_lent:
            shared = ops.partial_sum_buffer(world, num_tokens, hidden, dtype)
            self._is_lent = shared is not None
            return shared
        # The same GEMM into other memory: where a sum goes does not change its bits.
        comm = world.host_comm
        is_shared_otherwise = comm.size > 1 and num_bytes <= comm.partial_bytes
        return torch.empty(num_tokens, hidden, dtype=dtype) if is_shared_otherwise else None

    def take_back(self) -> None:
        """The partial sum in shared memory, if one is there, has been read."""
        self._is_lent = False

    def gather_columns(self, x: Tensor, sizes: tuple[int, ...]) -> Tensor:
        return ops.all_gather(x, world=self._world, dim=-1, sizes=sizes)


@dataclass(frozen=True, slots=True)
class _FusedStep:
    """Implements ReduceNorm. What does not change between the steps of a pass is settled once."""

    lender: FusedReduction
    world: World
    reduce: Prepared
    dtype: torch.dtype
    own_rows: tuple[int, int] | None
    """Shape of a residual in row shards."""
    is_in_place: bool

    def __call__(
        self,
        x_partial: Tensor,
        residual: Tensor | None,
        norm: Norm,
        bias: Tensor | None,
        out: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        weight, dtype = norm.weight, self.dtype
        if x_partial.dtype is not dtype or weight.dtype is not dtype:
            raise ConfigError(
                f"the model mixes dtypes: activations {dtype}, partial sum {x_partial.dtype}, norm "
                f"{weight.dtype}; convert all of it"
            )
        if out is None:
            out = x_partial.new_empty(x_partial.shape)
        if residual is not None and self.is_in_place:
            residual_out = residual
        else:
            residual_out = x_partial.new_empty(self.own_rows or x_partial.shape)
        self.reduce(
            self.world,
            x_partial.contiguous(),
            residual,
            bias,
            weight,
            out.data_ptr(),
            residual_out,
            norm.eps,
            norm.weight_offset,
        )
        self.lender.take_back()
        return out, residual_out


class GlooReduction:
    """torch.distributed's all_reduce on the world's group, then torch's add and norm."""

    def __init__(self, world: World, passes: Passes):
        self._world = world
        self.passes = passes

    def memory(self, num_tokens: int, hidden: int, dtype: torch.dtype) -> PassMemory:
        return PrivatePassMemory(num_tokens, hidden, dtype, self._world.device)

    def held_memory(self) -> object:
        return None

    def prepare(
        self,
        num_tokens: int,
        hidden: int,
        dtype: torch.dtype,
        *,
        keep_residuals: bool,
        choice: ReductionChoice | None = None,
        part: PassPart | None = None,
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

    def __init__(self, world: World, passes: Passes):
        self._world = world
        self._alone = alone_reduction(world)
        self.passes = passes

    def memory(self, num_tokens: int, hidden: int, dtype: torch.dtype) -> PassMemory:
        return PrivatePassMemory(num_tokens, hidden, dtype, self._world.device)

    def held_memory(self) -> object:
        return None

    def prepare(
        self,
        num_tokens: int,
        hidden: int,
        dtype: torch.dtype,
        *,
        keep_residuals: bool,
        choice: ReductionChoice | None = None,
        part: PassPart | None = None,
    ) -> ReduceNorm:
        # In a world of one, memory of the pass is as good as any, but not made for its GPUs.
        return self._alone.prepare(num_tokens, hidden, dtype, keep_residuals=keep_residuals)

    def partial_sum_buffer(self, num_tokens: int, hidden: int, dtype: torch.dtype) -> Tensor | None:
        return None

    def gather_columns(self, x: Tensor, sizes: tuple[int, ...]) -> Tensor:
        rank = self._world.rank
        return F.pad(x, (sum(sizes[:rank]), sum(sizes[rank + 1 :])))


def make_reduction(config: WeaveConfig, world: World) -> Reduction:
    """Return the strategy that `config` asks for."""
    strategies: dict[ReductionKind, Callable[[World, Passes], Reduction]] = {
        "fused": FusedReduction if world.cuda is None else GpuReduction,
        "gloo": GlooReduction,
        "none": NoReduction,
    }
    return strategies[config.reduction](world, Passes(world, config))


def alone_reduction(world: World) -> Reduction:
    """Return the fused operation of this rank alone, on the device of `world`: nothing is summed.

    Deterministic, whatever the ranks of `world` do meanwhile.
    """
    alone = World(None, num_threads=world.num_threads, device=world.device)
    return FusedReduction(alone) if alone.cuda is None else GpuReduction(alone)


def _add_norm(
    x_reduced: Tensor, residual: Tensor | None, norm: Norm, bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    if bias is not None:
        x_reduced = x_reduced + bias
    if residual is not None:
        x_reduced = x_reduced + residual
    weight = norm.weight if norm.weight_offset == 0.0 else norm.weight + norm.weight_offset
    return F.rms_norm(x_reduced, weight.shape, weight, norm.eps), x_reduced
