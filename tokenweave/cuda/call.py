"""One reduction on GPUs, settled but for its tensors: addresses out, one launch, copies if need be.

Tensors in a SymmetricBuffer of the world are read and written where they are. Others pass through
the world's slots: a copy in before the launch, a copy out after it, on the same stream. Nothing is
allocated or waited for, so a call may be captured into a CUDA graph.

Slots are safe to use again at once. A kernel ends on this rank when every peer has read its partial
sum; a peer writes the next result only after this rank has arrived there, on the stream after the
copy of the last one.
"""

from typing import TYPE_CHECKING

import torch

from tokenfabric import native
from tokenfabric.errors import ConfigError
from tokenweave.cuda.plan import CudaReductionPlan
from tokenweave.forms import NormKind
from tokenweave.native_call import NATIVE_DTYPE, NATIVE_FORMAT, NATIVE_NORM, address
from tokenweave.quantized_output import QuantizedOutput

if TYPE_CHECKING:
    from tokenfabric.cuda.ranks import CudaRanks
    from tokenfabric.world import World

# Of pieces that share a slot: what the kernels' vectors need.
_ALIGNMENT_BYTES = 128


class CudaReduction:
    """A planned reduction of one shape on one world of GPUs. Calling it is collective.

    Tensors are checked by the caller: contiguous, on the world's GPU, of this shape and dtype.
    """

    def __init__(
        self,
        world: "World",
        plan: CudaReductionPlan,
        *,
        num_tokens: int,
        hidden: int,
        dtype: torch.dtype,
        weight_dtype: torch.dtype,
        residual_dtype: torch.dtype,
        is_scattered: bool,
        norm: NormKind,
        quantized: QuantizedOutput | None,
        staging_block_bytes: int,
    ) -> None:
        """Settle the call.

        Args:
            world: on GPUs; not kept alive.
            plan: how it is done.
            num_tokens, hidden, dtype: the partial sums.
            weight_dtype, residual_dtype, norm: see `tokenweave.allreduce_rmsnorm`.
            is_scattered: every rank keeps its own rows of the result.
            quantized: for calls of `quantized`; None for the others.
            staging_block_bytes: what the world's staging was made with.
        """
        ranks = ranks_of(world)
        cuda = native.cuda
        is_one_shot = plan.algorithm == "one_shot"
        form = cuda.ONE_SHOT if is_one_shot else cuda.TWO_SHOT
        self.plan = plan
        self._x_is_shared = not is_one_shot
        self._results_are_shared = not is_one_shot and not is_scattered
        self._residual_is_shared = self._results_are_shared and plan.residual_layout == "replicated"
        self._x_bytes = num_tokens * hidden * dtype.itemsize
        self._residual_bytes = num_tokens * hidden * residual_dtype.itemsize
        self._codes_bytes = num_tokens * hidden
        self._scales_bytes = 0
        group_elements = 0
        if quantized is not None:
            group_elements = min(quantized.group_elements(hidden), hidden)
            self._scales_bytes = 4 * num_tokens * (-(-hidden // group_elements or 1))
        self._native = cuda.Reduction(
            ranks.group,
            cuda.REDUCE_SCATTER if is_scattered else form,
            plan.reach == "multicast",
            num_tokens,
            hidden,
            NATIVE_DTYPE[dtype],
            NATIVE_DTYPE[weight_dtype],
            NATIVE_DTYPE[residual_dtype],
            # A rank alone owns all rows, and one-shot does not know owners.
            is_scattered or (plan.residual_layout == "row_sharded" and not is_one_shot),
            NATIVE_NORM[norm],
            native.weave.NOT_QUANTIZED if quantized is None else NATIVE_FORMAT[quantized.format],
            group_elements,
            0.0 if quantized is None else quantized.scale or 0.0,
            ranks.memory.native if is_one_shot else None,
            ranks.workspace.staging if is_one_shot else 0,
            staging_block_bytes if is_one_shot else 0,
            plan.num_blocks,
            False,
        )

    def __call__(
        self,
        world: "World",
        x: torch.Tensor,
        residual: torch.Tensor | None,
        bias: torch.Tensor | None,
        weight: torch.Tensor | None,
        out_address: int,
        residual_out: torch.Tensor | None,
        eps: float,
        weight_offset: float,
        norm_bias: torch.Tensor | None = None,
    ) -> None:
        """Reduce on `world`. See `tokenweave.allreduce_rmsnorm` for what each tensor is."""
        self._launch(
            world, x, residual, bias, weight, norm_bias, out_address, address(residual_out), 0, 0,
            eps, weight_offset,
        )  # fmt: skip

    def quantized(
        self,
        world: "World",
        x: torch.Tensor,
        residual: torch.Tensor | None,
        bias: torch.Tensor | None,
        weight: torch.Tensor,
        norm_bias: torch.Tensor | None,
        out: torch.Tensor | None,
        residual_out: torch.Tensor,
        quantized: torch.Tensor,
        scales: torch.Tensor | None,
        eps: float,
        weight_offset: float,
    ) -> None:
        """Reduce to 8-bit codes. See `tokenweave.allreduce_rmsnorm_quantized`."""
        self._launch(
            world, x, residual, bias, weight, norm_bias, address(out), address(residual_out),
            address(quantized), address(scales), eps, weight_offset,
        )  # fmt: skip

    def _launch(
        self,
        world: "World",
        x: torch.Tensor,
        residual: torch.Tensor | None,
        bias: torch.Tensor | None,
        weight: torch.Tensor | None,
        norm_bias: torch.Tensor | None,
        out: int,
        residual_out: int,
        codes: int,
        scales: int,
        eps: float,
        weight_offset: float,
    ) -> None:
        ranks = ranks_of(world)
        stream = ranks.stream()
        slots = _Slots(ranks, stream)
        x_memory, x_at = None, address(x)
        if self._x_is_shared:
            x_memory, x_at = slots.read("x", x_at, self._x_bytes)
        out_at = slots.write("out", out, self._x_bytes, self._results_are_shared)
        codes_at = slots.write("codes", codes, self._codes_bytes, self._results_are_shared)
        scales_at = slots.write("scales", scales, self._scales_bytes, self._results_are_shared)
        slots.turn_to_residual()
        kept_at = slots.write(
            "residual_out", residual_out, self._residual_bytes, self._residual_is_shared
        )
        self._native.run(
            x_memory, x_at, *out_at, None, address(residual), *kept_at, *codes_at, *scales_at,
            address(bias), address(weight), address(norm_bias), eps, weight_offset, stream,
        )  # fmt: skip
        slots.copy_out()


Where = tuple["native.cuda.Memory | None", int]
"""Memory and an offset into it; or None and an address, 0 for no tensor."""


class _Slots:
    """Where the tensors of one call are, and what must be copied because of that."""

    __slots__ = ("_copies", "_next", "_ranks", "_stop", "_stream")

    def __init__(self, ranks: "CudaRanks", stream: int) -> None:
        place = ranks.workspace
        self._ranks, self._stream = ranks, stream
        self._next, self._stop = place.result, place.result + place.slot_bytes
        self._copies: list[tuple[int, int, int]] = []

    def turn_to_residual(self) -> None:
        place = self._ranks.workspace
        self._next, self._stop = place.residual, place.residual + place.slot_bytes

    def read(self, name: str, at: int, num_bytes: int) -> Where:
        """Return where all ranks can read a tensor; a private one is copied there first."""
        found = self._ranks.find(at, num_bytes)
        if found is not None:
            return found
        place = self._ranks.workspace
        _check_fits(name, num_bytes, place.slot_bytes)
        own = self._ranks.memory.by_rank[self._ranks.rank] + place.partial
        native.cuda.copy(own, at, num_bytes, self._stream)
        return self._ranks.memory.native, place.partial

    def write(self, name: str, at: int, num_bytes: int, is_shared: bool) -> Where:
        """Return where a result is written; of a private one that others write, a slot."""
        if not is_shared or at == 0:
            return None, at
        found = self._ranks.find(at, num_bytes)
        if found is not None:
            return found
        offset = self._next
        _check_fits(name, num_bytes, self._stop - offset)
        self._next = -(-(offset + num_bytes) // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES
        self._copies.append((at, offset, num_bytes))
        return self._ranks.memory.native, offset

    def copy_out(self) -> None:
        """Enqueue the copies of results into private memory."""
        base = self._ranks.memory.by_rank[self._ranks.rank]
        for at, offset, num_bytes in self._copies:
            native.cuda.copy(at, base + offset, num_bytes, self._stream)


def ranks_of(world: "World") -> "CudaRanks":
    """Return the GPUs of an open world; ConfigError for a closed one, or in a forked child.

    Raises:
        CommError: a rank has left in the middle of something: its kernels would meet others.
    """
    world.host_comm.check()
    assert world.cuda is not None
    return world.cuda


def _check_fits(name: str, num_bytes: int, left: int) -> None:
    if num_bytes > left:
        raise ConfigError(
            f"{name} is in private memory and has {num_bytes} bytes, but its slot has {left}: "
            "raise TOKENFABRIC_CUDA_SLOT_MIB on all ranks, or let it lie in a SymmetricBuffer"
        )
