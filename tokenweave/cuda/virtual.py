"""All ranks of a world in one launch on one GPU: the shipped kernels without a second GPU.

For tests and benchmarks. The ranks' memory is ordinary memory of that GPU, so what a rank reads of
another comes from its own HBM and never over a link.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch

from tokenfabric import native
from tokenfabric.cuda.kernels.launcher import kernel_launcher
from tokenfabric.cuda.memory import ALIGNMENT_BYTES
from tokenweave.forms import NormKind
from tokenweave.native_call import NATIVE_DTYPE, NATIVE_FORMAT, NATIVE_NORM, address
from tokenweave.plan import split_rows
from tokenweave.quantized_output import QuantizedOutput
from tokenweave.torch_quantized import CODE_DTYPE

Form = Literal["two_shot", "one_shot", "reduce_scatter", "row_per_block"]
"""row_per_block is the benchmarks' baseline: two-shot without row groups and prefetch."""
Tensors = list[torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class VirtualResults:
    """What every rank gets, by rank."""

    normed: Tensors
    residual: Tensors
    codes: Tensors | None = None
    scales: Tensors | None = None


class VirtualRanks:
    """`size` ranks on one GPU.

    Attributes:
        size: number of ranks.
        device: the GPU.
        records: pinned memory, one row a rank, where kernels say what went wrong.
    """

    def __init__(
        self,
        size: int,
        device: torch.device,
        *,
        timeout_s: float = 10.0,
        checks_calls: bool = False,
    ) -> None:
        self.size, self.device = size, device
        self._channels = [_aligned(native.cuda.channel_bytes(), device) for _ in range(size)]
        self.records = torch.zeros(
            (size, native.cuda.FAILURE_RECORD_BYTES), dtype=torch.uint8, pin_memory=True
        )
        torch.cuda.synchronize(device)
        self.group = native.cuda.Group(
            0, size, True, memory_of(self._channels), 0, [row.data_ptr() for row in self.records],
            timeout_s, checks_calls, kernel_launcher(),
        )  # fmt: skip

    def own_rows(self, rank: int, rows: int) -> int:
        """Return how many of `rows` a rank owns."""
        start, stop = split_rows(rows, self.size)[rank]
        return stop - start

    def prepare(self, call: "VirtualCall") -> "VirtualReduction":
        """Settle a call and allocate its results."""
        return VirtualReduction(self, call)

    def all_gather(self, sources: Tensors, rows: int, num_blocks: int) -> Tensors:
        """Return [rows, ...] on every rank from the rows that each owns."""
        shape = (rows, *sources[0].shape[1:])
        out = [torch.empty(shape, dtype=it.dtype, device=self.device) for it in sources]
        row_bytes = out[0][:1].numel() * out[0].itemsize if rows else 16
        native.cuda.gather(
            self.group, False, memory_of(sources), 0, memory_of(out), 0, rows, row_bytes,
            num_blocks, _stream(self.device),
        )  # fmt: skip
        return out


@dataclass(frozen=True, kw_only=True)
class Pace:
    """Loads of partial sums as a link would bring them: what csrc/weave/cuda/paced.cuh can play."""

    bytes_per_s: float
    """Of all partial sums that one rank loads, its own among them."""
    latency_s: float = 0.0
    """From asking for a row to adding it, at least."""


@dataclass(frozen=True, kw_only=True)
class VirtualCall:
    """What `VirtualRanks.prepare` settles: see `tokenweave.allreduce_rmsnorm`."""

    rows: int
    hidden: int
    form: Form = "two_shot"
    dtype: torch.dtype = torch.bfloat16
    weight_dtype: torch.dtype | None = None
    residual_dtype: torch.dtype | None = None
    is_residual_sharded: bool = False
    norm: NormKind = "rms_norm"
    quantized: QuantizedOutput | None = None
    num_blocks: int = 4
    pace: Pace | None = None
    """Of two_shot in bf16, for benchmarks."""


class VirtualReduction:
    """One reduction of all ranks. Its results are its own, and overwritten by the next `run`.

    Attributes:
        results: where `run` writes.
    """

    def __init__(self, ranks: VirtualRanks, call: VirtualCall) -> None:
        cuda, device = native.cuda, ranks.device
        dtype, kept = call.dtype, call.residual_dtype or call.dtype
        self._ranks, self._call = ranks, call
        is_one_shot, is_scattered = call.form == "one_shot", call.form == "reduce_scatter"
        full = [call.rows] * ranks.size
        own = [ranks.own_rows(rank, call.rows) for rank in range(ranks.size)]
        result_rows = own if is_scattered else full
        self._owns_rows = is_scattered or call.is_residual_sharded
        kept_rows = own if self._owns_rows else full

        def empty(rows: list[int], width: int, dtype: torch.dtype) -> Tensors:
            return [torch.empty((count, width), dtype=dtype, device=device) for count in rows]

        codes = scales = None
        group_elements = 0
        if call.quantized is not None:
            group_elements = min(call.quantized.group_elements(call.hidden), call.hidden)
            codes = empty(result_rows, call.hidden, CODE_DTYPE[call.quantized.format])
            if group_elements:
                num_scales = -(-call.hidden // group_elements)
                scales = empty(result_rows, num_scales, torch.float32)
        self.results = VirtualResults(
            normed=empty(result_rows, call.hidden, dtype),
            residual=empty(kept_rows, call.hidden, kept),
            codes=codes,
            scales=scales,
        )
        self._out = [_memory_or_none(it) for it in (self.results.normed, self.results.residual,
                                                    codes, scales)]  # fmt: skip
        block_bytes = 0
        self._staging: Tensors = []
        if is_one_shot:
            shape = (call.rows, call.hidden, NATIVE_DTYPE[dtype], call.num_blocks)
            block_bytes = cuda.one_shot_block_bytes(*shape)
            num_bytes = cuda.staging_bytes(ranks.size, call.num_blocks, block_bytes)
            self._staging = [_aligned(num_bytes, device) for _ in range(ranks.size)]
        forms = {"one_shot": cuda.ONE_SHOT, "reduce_scatter": cuda.REDUCE_SCATTER}
        quantized = call.quantized
        self._native = cuda.Reduction(
            ranks.group,
            forms.get(call.form, cuda.TWO_SHOT),
            False,
            call.rows,
            call.hidden,
            NATIVE_DTYPE[dtype],
            NATIVE_DTYPE[call.weight_dtype or dtype],
            NATIVE_DTYPE[kept],
            self._owns_rows,
            NATIVE_NORM[call.norm],
            native.weave.NOT_QUANTIZED if quantized is None else NATIVE_FORMAT[quantized.format],
            group_elements,
            0.0 if quantized is None else quantized.scale or 0.0,
            memory_of(self._staging) if is_one_shot else None,
            0,
            block_bytes,
            call.num_blocks,
            call.form == "row_per_block",
        )
        if call.pace is not None:
            self._native.pace(call.pace.bytes_per_s * 1e-9, round(call.pace.latency_s * 1e9))

    def run(
        self,
        partials: Tensors,
        residuals: Tensors | None = None,
        weight: torch.Tensor | None = None,
        bias: torch.Tensor | None = None,
        norm_bias: torch.Tensor | None = None,
        *,
        eps: float = 1e-6,
        weight_offset: float = 0.0,
    ) -> VirtualResults:
        """Enqueue the reduction on the current stream.

        Args:
            partials: [rows, hidden] of every rank.
            residuals: of every rank what it keeps: all rows, or its own.
            weight, bias, norm_bias: [hidden], for all ranks.
        """
        self.launcher(
            partials, residuals, weight, bias, norm_bias, eps=eps, weight_offset=weight_offset
        )()
        return self.results

    def launcher(
        self,
        partials: Tensors,
        residuals: Tensors | None = None,
        weight: torch.Tensor | None = None,
        bias: torch.Tensor | None = None,
        norm_bias: torch.Tensor | None = None,
        *,
        eps: float = 1e-6,
        weight_offset: float = 0.0,
    ) -> "Launcher":
        """Return `run` with its tensors settled, for calls that are timed."""
        out, kept, codes, scales = self._out
        arguments = (
            memory_of(partials), 0, out, 0, _memory_or_none(residuals), 0, kept, 0, codes, 0,
            scales, 0, address(bias), address(weight), address(norm_bias), eps, weight_offset,
        )  # fmt: skip
        return Launcher(self, arguments, (partials, residuals, weight, bias, norm_bias))


class Launcher:
    """A launch with everything settled. Keeps its tensors alive."""

    __slots__ = ("_device", "_kept", "_launch")

    def __init__(
        self, reduction: VirtualReduction, arguments: tuple[Any, ...], tensors: object
    ) -> None:
        self._launch: Callable[[int], None] = partial(reduction._native.run, *arguments)
        self._kept = (reduction, tensors)
        self._device = reduction._ranks.device

    def __call__(self) -> None:
        self._launch(_stream(self._device))


def memory_of(tensors: Sequence[torch.Tensor]) -> "native.cuda.Memory":
    """Return the memory that is tensors[r] for rank r."""
    return native.cuda.Memory([address(it) for it in tensors], 0)


def _memory_or_none(tensors: Sequence[torch.Tensor] | None) -> "native.cuda.Memory | None":
    return None if tensors is None else memory_of(tensors)


def _aligned(num_bytes: int, device: torch.device) -> torch.Tensor:
    memory = torch.zeros(num_bytes + ALIGNMENT_BYTES, dtype=torch.uint8, device=device)
    start = -memory.data_ptr() % ALIGNMENT_BYTES
    return memory[start : start + num_bytes]


def _stream(device: torch.device) -> int:
    return torch.cuda.current_stream(device).cuda_stream
