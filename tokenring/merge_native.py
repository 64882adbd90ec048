"""The native merge as Python sees it: tensors in, addresses out. merge.py has checked them."""

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tokenfabric import native
from tokenfabric.cuda.kernels.launcher import kernel_launcher
from tokenring.partial import Partial


class MergeThreads:
    """The threads that share a merge: those of a world, or some of its own.

    Used by one thread at a time.
    """

    def __init__(self, *, num_threads: int = 1, instruction_set: str = "auto") -> None:
        """Start the threads; the calling one counts.

        Args:
            num_threads: at least 1.
            instruction_set: "auto" for the widest this CPU has, or its name, for tests.

        Raises:
            ConfigError: num_threads is below 1, or the CPU or the build lacks the instructions.
        """
        self.pool: native.ring.ThreadPool = native.ring.ThreadPool(num_threads)
        self.kernels: native.ring.MergeKernels = native.ring.choose_merge_kernels(instruction_set)

    @classmethod
    def of_communicator(cls, communicator: "native.fabric.Communicator") -> "MergeThreads":
        """Return the threads that the communicator has anyway; it lives as long as they do."""
        threads = cls.__new__(cls)
        threads.pool = native.ring.threads_of(communicator)
        threads.kernels = native.ring.choose_merge_kernels("auto")
        return threads


# A pool of one starts no thread and keeps nothing between calls: any thread may use it.
@functools.cache
def _calling_thread() -> MergeThreads:
    return MergeThreads()


@functools.cache
def _dtype_codes() -> dict[torch.dtype, int]:
    return {
        torch.float32: native.ring.FLOAT32,
        torch.bfloat16: native.ring.BFLOAT16,
        torch.float16: native.ring.FLOAT16,
    }


def merge_on_cpu(
    partials: Sequence[Partial],
    out: Tensor,
    lse: Tensor,
    *,
    sinks: Tensor | None,
    threads: MergeThreads | None,
) -> None:
    """See `merge.merge_partials`; all tensors on the CPU, none fp64."""
    threads = _calling_thread() if threads is None else threads
    sinks = None if sinks is None else sinks.contiguous()
    native.ring.merge_lse(
        threads=threads.pool,
        kernels=threads.kernels,
        **_operands(partials, out, lse, sinks),
    )


def merge_on_cuda(
    partials: Sequence[Partial], out: Tensor, lse: Tensor, *, sinks: Tensor | None
) -> None:
    """See `merge.merge_partials`; all tensors on one GPU, none fp64. Enqueued on its stream."""
    sinks = None if sinks is None else sinks.contiguous()
    with torch.cuda.device(out.device):
        native.ring.merge_lse_cuda(
            **_operands(partials, out, lse, sinks),
            stream=torch.cuda.current_stream().cuda_stream,
            num_blocks=0,
            launcher=kernel_launcher(),
        )


def _operands(
    partials: Sequence[Partial], out: Tensor, lse: Tensor, sinks: Tensor | None
) -> dict[str, Any]:
    """Return what both native merges take, by name."""
    codes = _dtype_codes()
    pieces = [
        native.ring.MergePiece(
            out=partial.out.data_ptr(),
            out_strides=partial.out.stride()[:3],
            dtype=codes[partial.out.dtype],
            lse=partial.lse.data_ptr(),
            lse_strides=partial.lse.stride(),
            row_start=partial.row_start,
            num_rows=partial.out.shape[1],
            head_start=partial.head_start,
            num_heads=partial.out.shape[2],
        )
        for partial in partials
    ]
    batch, rows, heads, head_dim = out.shape
    return {
        "pieces": pieces,
        "sinks": 0 if sinks is None else sinks.data_ptr(),
        "out": out.data_ptr(),
        "out_strides": out.stride()[:3],
        "out_dtype": codes[out.dtype],
        "lse": lse.data_ptr(),
        "lse_strides": lse.stride(),
        "batch": batch,
        "rows": rows,
        "heads": heads,
        "head_dim": head_dim,
    }
