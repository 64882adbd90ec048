"""What reductions cost: the fused kernel by SM budget, and the two kernels it replaces. Pure.

Two-shot, each block of the kernel handles one row after the other of those its rank owns:

    t = t0 + c * signal + max(bytes / link, rows / c * (row_s + c * interference))

c blocks (one on an SM). With few blocks the latency of a row counts, with many the link.
"""

from collections.abc import Sequence
from typing import Literal

from tokenfabric.kernel import Kernel
from tokenweave.device import Device
from tokenweave.split_plan import ReductionChoice

ReductionKind = Literal["fused", "all_reduce"]
_BYTES = 2


def two_shot_bytes(num_bytes: int, world_size: int, device: Device) -> int:
    """Return what passes a rank's port in its busier direction for a message of num_bytes."""
    peer = 2 * num_bytes * (world_size - 1) // world_size
    if device.link != "multicast":
        return peer
    # The switch adds: the whole message leaves a rank once, and comes in for its own rows.
    return min(peer, num_bytes + num_bytes // world_size)


def reduction_s(
    kind: ReductionKind,
    choice: ReductionChoice,
    num_tokens: int,
    hidden: int,
    world_size: int,
    device: Device,
) -> float:
    """Return the time of one reduction of [num_tokens, hidden] bf16 with nothing beside it."""
    if num_tokens == 0 or world_size == 1:
        return norm_s(num_tokens, hidden, device)
    if choice.algorithm == "one_shot":
        return one_shot_s(kind, num_tokens, hidden, world_size, device)
    sms = (choice.num_sms or max(device.reduction_sms),)
    return two_shot_s(kind, sms, num_tokens, hidden, world_size, device)[0]


def two_shot_s(
    kind: ReductionKind,
    sms: Sequence[int],
    num_tokens: int,
    hidden: int,
    world_size: int,
    device: Device,
) -> list[float]:
    """Return the time of a two-shot reduction by several ranks, for each number of SMs."""
    rows = -(-num_tokens // world_size)
    num_bytes = two_shot_bytes(num_tokens * hidden * _BYTES, world_size, device)
    link_s = num_bytes / device.link_bandwidth
    row_s = device.fused_row_s if kind == "fused" else device.all_reduce_row_s
    start_s, signal_s = device.two_shot_start_s, device.block_signal_s
    interference_s = device.row_interference_s
    times_s = []
    for num_sms in sms:
        blocks = min(num_sms, rows)
        rows_s = rows / blocks * row_s + rows * interference_s
        times_s.append(start_s + blocks * signal_s + max(link_s, rows_s))
    return times_s


def one_shot_s(
    kind: ReductionKind, num_tokens: int, hidden: int, world_size: int, device: Device
) -> float:
    """Return the time of a one-shot reduction by several ranks."""
    num_bytes = num_tokens * hidden * _BYTES
    link_s = (world_size - 1) * num_bytes / device.link_bandwidth
    memory_s = 4 * num_bytes / device.memory_bandwidth if kind == "fused" else 0.0
    return device.one_shot_start_s + link_s + memory_s


def norm_s(num_tokens: int, hidden: int, device: Device) -> float:
    """Return the time of residual add and norm of all rows in a kernel of their own."""
    if num_tokens == 0:
        return 0.0
    return device.norm_start_s + 4 * num_tokens * hidden * _BYTES / device.memory_bandwidth


def unfused_s(num_tokens: int, hidden: int, world_size: int, device: Device) -> float:
    """Return the time of a plain all-reduce, the better of one- and two-shot, and then the norm."""
    reduce_s = 0.0 if world_size == 1 else min(
        reduction_s("all_reduce", choice, num_tokens, hidden, world_size, device)
        for choice in (
            ReductionChoice(algorithm="one_shot", num_sms=device.unfused_sms),
            ReductionChoice(algorithm="two_shot", num_sms=device.unfused_sms),
        )
    )  # fmt: skip
    return reduce_s + norm_s(num_tokens, hidden, device)


def exposed_choice(
    num_tokens: int, hidden: int, world_size: int, device: Device
) -> ReductionChoice:
    """Return the fastest way to do a reduction beside which nothing runs."""
    options = [ReductionChoice(algorithm="one_shot", num_sms=0)]
    options += [
        ReductionChoice(algorithm="two_shot", num_sms=num_sms) for num_sms in device.reduction_sms
    ]
    return min(
        options,
        key=lambda choice: reduction_s("fused", choice, num_tokens, hidden, world_size, device),
    )


def reduction_kernel(
    choice: ReductionChoice, num_tokens: int, hidden: int, world_size: int, device: Device
) -> Kernel:
    """Return the launch of a fused reduction as a simulator's kernel, holding its SMs."""
    return Kernel(
        name=f"{choice.algorithm} all-reduce, add, norm",
        serial_s=reduction_s("fused", choice, num_tokens, hidden, world_size, device),
        held_sms=choice.num_sms,
    )
