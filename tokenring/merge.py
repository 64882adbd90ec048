"""The merge of partial attention outputs, all at once, and the choice of what computes it.

    m = max_i lse_i;  w_i = exp(lse_i - m);  out = sum_i w_i out_i / sum_i w_i
    lse = m + log(sum_i w_i)

Every partial is rounded once, where it was made; the sums are fp32, in the order of the list, so
that neither their error nor their bits depend on the order in which partials arrive.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from tokenfabric.errors import ConfigError
from tokenring.merge_native import MergeThreads, merge_on_cpu, merge_on_cuda
from tokenring.partial import Partial

_NATIVE_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def merge_partials(
    partials: Sequence[Partial],
    out: Tensor,
    lse: Tensor,
    *,
    sinks: Tensor | None = None,
    threads: MergeThreads | None = None,
) -> None:
    """Merge partials of the same rows over different keys into out and lse.

    Each partial covers rows row_start.. and heads head_start.. of the result, for every batch
    entry. A row of a partial with lse -inf saw no key: its out is not read. A row that no partial
    has, or only such, gets out 0 and lse -inf. NaN in lse, or +inf, which no attention gives, makes
    out and lse NaN; NaN in a partial's out makes out NaN. Local; deterministic.

    On CPUs and on GPUs native code computes fp32, bf16 and fp16, within 1 ulp of fp32 for each
    weight and with the same bits of out everywhere; fp64 is computed by `merge_with_torch`. On a
    GPU a row may have 160 partials, and the merge is enqueued on the current stream.

    Args:
        partials: none is an empty result; see Partial. Dtypes may differ.
        out: [batch, rows, heads, head_dim_v], overwritten; the dtype is what the result is rounded
            to. Any strides, the last being 1. May not overlap a partial.
        lse: [batch, rows, heads], fp32 (fp64 with an fp64 out), overwritten; any strides.
        sinks: [heads], fp32: one more term exp(sink) of each sum, without a value; it is in lse,
            so it is given once, in the last merge.
        threads: whose threads share the work; the calling thread alone if None.

    Raises:
        ConfigError: shapes, dtypes or devices do not belong together.
    """
    _check(partials, out, lse, sinks)
    dtypes = {out.dtype, lse.dtype, *(partial.out.dtype for partial in partials)}
    if out.device.type == "cpu" and dtypes <= set(_NATIVE_DTYPES):
        merge_on_cpu(partials, out, lse, sinks=sinks, threads=threads)
    elif out.device.type == "cuda" and dtypes <= set(_NATIVE_DTYPES):
        merge_on_cuda(partials, out, lse, sinks=sinks)
    else:
        merge_with_torch(partials, out, lse, sinks=sinks)


@torch.no_grad()
def merge_with_torch(
    partials: Sequence[Partial], out: Tensor, lse: Tensor, *, sinks: Tensor | None = None
) -> None:
    """Do what `merge_partials` does, in plain torch on any device."""
    wide = lse.dtype
    highest = torch.full_like(lse, -math.inf)
    if sinks is not None:
        highest = sinks.to(wide).expand_as(lse).clone()
    for partial in partials:
        here = _place(highest, partial)
        here.copy_(torch.maximum(here, partial.lse))
    # A difference of equal infinities is NaN; for an empty row it must count as exp(-inf).
    level = highest.masked_fill(torch.isneginf(highest), 0)
    total = torch.zeros_like(level)
    if sinks is not None:
        total += torch.exp(sinks.to(wide) - level)
    sums = torch.zeros(out.shape, dtype=wide, device=out.device)
    for partial in partials:
        weight = torch.exp(partial.lse - _place(level, partial))
        _place(total, partial).add_(weight)
        is_empty = torch.isneginf(partial.lse)[..., None]
        values = partial.out.to(wide).masked_fill(is_empty, 0)
        _place(sums, partial).add_(weight[..., None] * values)
    is_empty = torch.isneginf(highest)
    out.copy_(torch.where(is_empty[..., None], 0, sums / total[..., None]))
    lse.copy_(highest + torch.log(total))


def _place(tensor: Tensor, partial: Partial) -> Tensor:
    rows, heads = partial.lse.shape[1:]
    return tensor.narrow(1, partial.row_start, rows).narrow(2, partial.head_start, heads)


def _check(partials: Sequence[Partial], out: Tensor, lse: Tensor, sinks: Tensor | None) -> None:
    if out.dim() != 4 or lse.shape != out.shape[:3]:
        raise ConfigError(
            f"out is [batch, rows, heads, head_dim_v] and lse [batch, rows, heads], got "
            f"{list(out.shape)} and {list(lse.shape)}"
        )
    wide = torch.float64 if out.dtype == torch.float64 else torch.float32
    _check_dtype_and_device("lse", lse, wide, out)
    if not out.dtype.is_floating_point or (out.shape[3] > 1 and out.stride(3) != 1):
        raise ConfigError(
            f"out must be floating point with stride 1 in its last dimension, got {out.dtype} with "
            f"strides {out.stride()}"
        )
    batch, num_rows, num_heads, head_dim = out.shape
    for index, partial in enumerate(partials):
        name = f"partial {index}"
        shape = list(partial.out.shape)
        if len(shape) != 4 or (shape[0], shape[3]) != (batch, head_dim):
            raise ConfigError(f"{name} has out {shape}, to be merged into {list(out.shape)}")
        if partial.lse.shape != partial.out.shape[:3]:
            raise ConfigError(f"{name} has out {shape} but lse {list(partial.lse.shape)}")
        for what, start, size, limit in (
            ("rows", partial.row_start, shape[1], num_rows),
            ("heads", partial.head_start, shape[2], num_heads),
        ):
            if not 0 <= start <= start + size <= limit:
                raise ConfigError(
                    f"{name} covers {what} {start} to {start + size}, but the result has {limit}"
                )
        if head_dim > 1 and partial.out.stride(3) != 1:
            raise ConfigError(
                f"{name} has strides {partial.out.stride()}: the last must be 1; make it contiguous"
            )
        _check_dtype_and_device(f"{name}: lse", partial.lse, wide, out)
        _check_dtype_and_device(f"{name}: out", partial.out, partial.out.dtype, out)
    if sinks is not None:
        if list(sinks.shape) != [num_heads]:
            raise ConfigError(
                f"sinks are [{num_heads}], one for each head, got {list(sinks.shape)}"
            )
        _check_dtype_and_device("sinks", sinks, wide, out)


def _check_dtype_and_device(name: str, tensor: Tensor, dtype: torch.dtype, out: Tensor) -> None:
    if tensor.dtype != dtype or tensor.device != out.device:
        raise ConfigError(
            f"{name} must be {dtype} on {out.device}, got {tensor.dtype} on {tensor.device}"
        )
