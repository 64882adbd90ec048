"""Virtual ranks on plain memory: the contract of csrc/weave/cuda/launch.hpp in torch on the CPU.

With it the tests of tests/gpu run without a GPU, which says that *they* are right: their
references, shapes and tolerances. It says nothing about the kernels.
"""

from typing import Any

import torch
from torch import Tensor

from tests.dist.test_ops_quantized import quantize_in_torch
from tests.unit.fake_cuda import FakeMemory, at
from tokenweave import QuantizedOutput
from tokenweave.native_call import NATIVE_DTYPE, NATIVE_FORMAT, NATIVE_NORM
from tokenweave.plan import split_rows

_DTYPE = {number: dtype for dtype, number in NATIVE_DTYPE.items()}
_FORMAT = {number: name for name, number in NATIVE_FORMAT.items()}


class FakeVirtualGroup:
    def __init__(self, rank: int, size: int, is_virtual: bool, *rest: Any) -> None:
        assert (rank, is_virtual) == (0, True)
        self.size = size

    def check(self, operation: str) -> None:
        """Nothing goes wrong here."""


class FakeVirtualReduction:
    """All ranks' work of one launch, one rank after the other."""

    def __init__(self, *settled: Any) -> None:
        (self.group, self.form, _, self.rows, self.hidden, dtype, weight_dtype, residual_dtype,
         self.owns_residual, self.norm, self.format, self.group_elements, self.scale,
         *_) = settled  # fmt: skip
        self.dtype, self.weight_dtype = _DTYPE[dtype], _DTYPE[weight_dtype]
        self.residual_dtype = _DTYPE[residual_dtype]

    def run(
        self, x: FakeMemory, _x: int, out: FakeMemory, _out: int, residual: FakeMemory | None,
        _residual: int, kept: FakeMemory | None, _kept: int, codes: FakeMemory | None, _codes: int,
        scales: FakeMemory | None, _scales: int, bias: int, weight: int, norm_bias: int,
        eps: float, weight_offset: float, stream: int,
    ) -> None:  # fmt: skip
        """Compute everything from what was there before, then store it."""
        shape, size = (self.rows, self.hidden), self.group.size
        partials = [at(address, shape, self.dtype) for address in x.by_rank]
        total = sum(it.float() for it in partials).to(self.dtype).float()
        if bias:
            total = total + at(bias, shape[1:], self.dtype).float()
        if residual is not None:
            total = total + self._residual(residual).float()
        result = self._normed(total, weight, norm_bias, eps, weight_offset).to(self.dtype)
        for rank in range(size):
            own = slice(*split_rows(self.rows, size)[rank])
            rows = own if self.form == FakeVirtualCuda.REDUCE_SCATTER else slice(None)
            kept_rows = own if self.owns_residual else slice(None)
            _put(out, rank, result[rows])
            _put(kept, rank, total[kept_rows].to(self.residual_dtype))
            if codes is not None:
                found, of_rows = quantize_in_torch(result[rows], self._quantized())
                _put(codes, rank, found)
                _put(scales, rank, of_rows)

    def _residual(self, memory: FakeMemory) -> Tensor:
        spans = split_rows(self.rows, self.group.size)
        if not self.owns_residual:
            return at(memory.by_rank[0], (self.rows, self.hidden), self.residual_dtype)
        parts = [
            at(address, (stop - start, self.hidden), self.residual_dtype)
            for address, (start, stop) in zip(memory.by_rank, spans, strict=True)
        ]
        return torch.cat(parts)

    def _normed(
        self, total: Tensor, weight: int, norm_bias: int, eps: float, weight_offset: float
    ) -> Tensor:
        if not weight:
            return total
        centered = total
        if self.norm == NATIVE_NORM["layer_norm"]:
            centered = total - total.mean(-1, keepdim=True)
        scale = torch.rsqrt(centered.square().mean(-1, keepdim=True) + eps)
        factor = weight_offset + at(weight, (self.hidden,), self.weight_dtype).float()
        normed = centered * scale * factor
        if norm_bias:
            normed = normed + at(norm_bias, (self.hidden,), self.weight_dtype).float()
        return normed

    def _quantized(self) -> QuantizedOutput:
        scaling = "static"
        if self.group_elements:
            scaling = "per_token" if self.group_elements == self.hidden else "per_group"
        return QuantizedOutput(
            format=_FORMAT[self.format],
            scaling=scaling,  # type: ignore[arg-type]
            scale=self.scale if scaling == "static" else None,
        )


class FakeVirtualCuda:
    """What `native.cuda` has, for virtual ranks."""

    TWO_SHOT, ONE_SHOT, REDUCE_SCATTER, FAILURE_RECORD_BYTES = 0, 1, 2, 32
    Memory, Group, Reduction = FakeMemory, FakeVirtualGroup, FakeVirtualReduction

    @staticmethod
    def channel_bytes() -> int:
        """Return some bytes."""
        return 256

    @staticmethod
    def one_shot_block_bytes(rows: int, hidden: int, dtype: int, num_blocks: int) -> int:
        """Return some bytes."""
        return 256

    @staticmethod
    def staging_bytes(size: int, num_blocks: int, staging_block_bytes: int) -> int:
        """Return some bytes."""
        return 256

    @staticmethod
    def gather(
        group: FakeVirtualGroup, is_multicast: bool, source: FakeMemory, _source: int,
        out: FakeMemory, _out: int, rows: int, row_bytes: int, num_blocks: int, stream: int,
    ) -> None:  # fmt: skip
        """Give all ranks the rows of each."""
        spans = split_rows(rows, group.size)
        parts = [
            at(address, (stop - start, row_bytes), torch.uint8)
            for address, (start, stop) in zip(source.by_rank, spans, strict=True)
        ]
        for rank in range(group.size):
            _put(out, rank, torch.cat(parts))


def _put(memory: FakeMemory | None, rank: int, value: Tensor) -> None:
    if memory is not None:
        at(memory.by_rank[rank], value.shape, value.dtype).copy_(value)
