"""The reductions of a model on GPUs: Reduction of reduction_protocol.py with the CUDA kernels.

Two-shot reads partial sums and writes norms where blocks left them and read them, and leaves each
residual row with its owner, where it never travels. One-shot, for decoding and small batches, and
passes that want every residual keep it complete on every rank.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from tokenfabric.errors import ConfigError
from tokenfabric.world import World
from tokenweave import ops
from tokenweave.cuda.call import CudaReduction
from tokenweave.cuda.model_memory import GpuPart, GpuPassMemory, ModelMemory
from tokenweave.pass_memory import PassMemory, PassPart
from tokenweave.pass_reduction import prepare_of_pass
from tokenweave.passes import Passes
from tokenweave.reduction_protocol import Norm, ReduceNorm
from tokenweave.split_plan import ReductionChoice


class GpuReduction:
    """Implements Reduction: all-reduce, bias, residual add and norm in one kernel."""

    def __init__(self, world: World, passes: Passes | None = None):
        """Take the ranks, and how passes are run; default: as WeaveConfig() says."""
        self._world = world
        self.passes = Passes(world) if passes is None else passes
        self._model_memory = ModelMemory(world)
        self._pass: GpuPassMemory | None = None

    def memory(self, num_tokens: int, hidden: int, dtype: torch.dtype) -> PassMemory:
        # A rank whose pass ended early says so there: nobody is to wait for a kernel's deadline.
        self._world.host_comm.check()
        self._pass = None  # it holds memory that may have to go
        self._pass = self._model_memory.of_pass(num_tokens, hidden, dtype)
        return self._pass

    def held_memory(self) -> object:
        return self._model_memory.held

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
        assert part is None or isinstance(part, GpuPart)
        if part is not None and own_rows is None:
            _ = part.residual  # made here, where nothing has been launched yet
        assert isinstance(prepared, CudaReduction)
        return _GpuStep(
            self._world,
            prepared,
            dtype,
            part,
            own_rows=own_rows,
            is_kept=keep_residuals,
        )

    def partial_sum_buffer(self, num_tokens: int, hidden: int, dtype: torch.dtype) -> Tensor | None:
        if self._pass is None or self._pass.open_part is None:
            return None
        partial = self._pass.open_part.partial
        # Of a block in several pieces each would overwrite the one before.
        if partial.shape != (num_tokens, hidden) or partial.dtype is not dtype:
            return None
        # One linear layer of a block gets it: what another one sums is added to it.
        self._pass.open_part = None
        return partial

    def gather_columns(self, x: Tensor, sizes: tuple[int, ...]) -> Tensor:
        return ops.all_gather(x, world=self._world, dim=-1, sizes=sizes)


@dataclass(frozen=True, slots=True)
class _GpuStep:
    """Implements ReduceNorm."""

    world: World
    reduce: CudaReduction
    dtype: torch.dtype
    part: GpuPart | None
    own_rows: tuple[int, int] | None
    """Shape of a residual in row shards."""
    is_kept: bool

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
            # A two-shot kernel may write where it has read; one-shot writes to private memory.
            is_two_shot = self.reduce.plan.algorithm == "two_shot"
            out = x_partial if is_two_shot else x_partial.new_empty(x_partial.shape)
        residual_out = self._residual_out(x_partial, residual)
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
        # A kept residual must not be where the next step writes.
        return out, residual_out.clone() if self.is_kept else residual_out

    def _residual_out(self, x_partial: Tensor, residual: Tensor | None) -> Tensor:
        """Return where the new residual goes. Row shards are private, and live on the stream of
        the reductions from a pass's first one to its last.
        """
        if self.own_rows is not None:
            return x_partial.new_empty(self.own_rows) if residual is None else residual
        if self.part is None:
            return x_partial.new_empty(x_partial.shape)
        return self.part.residual.view(x_partial.shape)
