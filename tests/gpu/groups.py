"""Ranks of one process on one GPU that are launched one by one, as those of several GPUs are."""

import torch

from tokenfabric import native
from tokenfabric.cuda.kernels.launcher import kernel_launcher
from tokenfabric.errors import CommError
from tokenweave.cuda.virtual import memory_of
from tokenweave.native_call import NATIVE_DTYPE, address

_ALIGNMENT_BYTES = 128


class Ranks:
    """`size` ranks with their memory; a launch is one rank's."""

    def __init__(
        self, size: int, device: torch.device, *, timeout_s: float, checks_calls: bool = False
    ) -> None:
        self.size, self.device = size, device
        num_bytes = native.cuda.channel_bytes() + _ALIGNMENT_BYTES
        self.channels = [
            torch.zeros(num_bytes, dtype=torch.uint8, device=device) for _ in range(size)
        ]
        starts = [-it.data_ptr() % _ALIGNMENT_BYTES for it in self.channels]
        shared = memory_of([it[start:] for it, start in zip(self.channels, starts, strict=True)])
        self.records = torch.zeros(
            (size, native.cuda.FAILURE_RECORD_BYTES), dtype=torch.uint8, pin_memory=True
        )
        self.groups = [
            native.cuda.Group(
                rank, size, False, shared, 0, [self.records[rank].data_ptr()], timeout_s,
                checks_calls, kernel_launcher(),
            )
            for rank in range(size)
        ]  # fmt: skip
        torch.cuda.synchronize(device)

    def launch(
        self,
        rank: int,
        partials: list[torch.Tensor],
        out: list[torch.Tensor],
        residual_out: torch.Tensor,
        weight: torch.Tensor,
        *,
        eps: float = 1e-6,
        num_blocks: int = 2,
        stream: torch.cuda.Stream | None = None,
    ) -> None:
        """Enqueue one rank's two-shot reduction with a sharded residual."""
        rows, hidden = partials[0].shape
        dtype = NATIVE_DTYPE[partials[0].dtype]
        reduction = native.cuda.Reduction(
            self.groups[rank], native.cuda.TWO_SHOT, False, rows, hidden, dtype, dtype, dtype,
            True, native.weave.RMS_NORM, native.weave.NOT_QUANTIZED, 0, 0.0, None, 0, 0,
            num_blocks, False,
        )  # fmt: skip
        queue = torch.cuda.current_stream(self.device) if stream is None else stream
        reduction.run(
            memory_of(partials), 0, memory_of(out), 0, None, 0, None, address(residual_out), None,
            0, None, 0, 0, address(weight), 0, eps, 0.0, queue.cuda_stream,
        )  # fmt: skip

    def error(self, rank: int) -> CommError | None:
        """Return what a rank's kernels have recorded."""
        try:
            self.groups[rank].check("test")
        except CommError as error:
            return error
        return None
