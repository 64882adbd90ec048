"""How blocks are computed and rounded, and results of blocks become those of rows."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tokenring.blocks import Block
from tokenring.held import Held, HeldOut, WireFormat, storage_spans
from tokenring.local_protocol import LocalAttention
from tokenring.merge import merge_partials
from tokenring.merge_native import MergeThreads

_CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True, slots=True)
class Numerics:
    """How blocks are computed and results rounded."""

    local: LocalAttention
    scale: float
    softcap: float | None
    sinks: Tensor | None
    """[heads_q] fp32: one more term in the denominator of every row."""
    wire: WireFormat
    result: torch.dtype
    """Of the merged out, dq, dk and dv."""
    threads: MergeThreads | None
    """Who shares the merges; None: the calling thread alone."""
    device: torch.device = _CPU
    """Of all tensors."""


def merge_outs(
    numerics: Numerics, output: Block, inputs: Sequence[HeldOut], *, is_result: bool = False
) -> tuple[Tensor, Tensor]:
    """Return (lse, out) of a block: its only partial, or the merge of all.

    Args:
        numerics: as the whole walk has them.
        output: whose rows and heads.
        inputs: in the order of the sum.
        is_result: the last merge: rounded to the result's dtype, with the sinks.
    """
    partials = [partial for held in inputs for partial in held.within(output)]
    if not is_result and len(partials) == 1:
        (partial,) = partials
        if partial.lse.shape[1:] == (output.num_rows, output.heads.size):
            return partial.lse, partial.out
    wire = numerics.wire
    shape = (wire.batch, output.num_rows, output.heads.size)
    dtype = numerics.result if is_result else wire.sums
    device = numerics.device
    out = torch.empty((*shape, wire.head_dim_v), dtype=dtype, device=device)
    lse = torch.empty(shape, dtype=wire.sums, device=device)
    sinks = numerics.sinks if is_result else None
    merge_partials(partials, out, lse, sinks=sinks, threads=numerics.threads)
    return lse, out


def add_gradients(numerics: Numerics, output: Block, inputs: Sequence[Held]) -> tuple[Tensor, ...]:
    """Return the sums of gradients over a block, added in the order of the inputs."""
    wire = numerics.wire
    shape = (wire.batch, output.num_rows, output.heads.size)
    sums = tuple(
        torch.zeros((*shape, *width), dtype=wire.sums, device=numerics.device)
        for width, _ in wire.parts(output.kind)
    )
    for held in inputs:
        first = held.block.heads.start - output.heads.start
        heads = slice(first, first + held.block.heads.size)
        base = 0
        for span in held.block.rows:
            (target,) = storage_spans(output.rows, (span,))
            for total, part in zip(sums, held.parts, strict=True):
                total[:, target.start : target.stop, heads] += part[:, base : base + span.size]
            base += span.size
    return sums
