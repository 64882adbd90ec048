"""A few fused launches for a profiler, and the bytes that one must move.

ncu --metrics dram__bytes_read.sum,dram__bytes_write.sum python -m benchmarks.gpu_once
"""

import torch
from rich.console import Console

from benchmarks.gpu_options import gpu
from benchmarks.gpu_virtual import Problem, Size
from tokenweave.cuda.virtual import VirtualRanks


def main() -> None:
    """Launch the two-shot kernel of eight virtual ranks, 4096 x 8192 bf16, four times."""
    device, size = gpu(), Size(ranks=8, rows=4096, hidden=8192)
    calls = Problem(size, device).fused(VirtualRanks(size.ranks, device), "two_shot", 16)
    for index in range(4):
        calls[index % len(calls)]()
    torch.cuda.synchronize(device)
    read = size.message_bytes * (size.ranks + 1)
    Console().print(
        f"a launch reads {read} and writes {size.fused_bytes - read} bytes", highlight=False
    )


if __name__ == "__main__":
    main()
