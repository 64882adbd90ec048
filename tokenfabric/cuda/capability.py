"""What the ranks can do with their GPUs, and what they therefore do together. Pure.

One rank that cannot use a path would wait for the others on another: what is used is what all of
them can, and every rank comes to the same answer because every rank gets the same facts.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

Reach = Literal["multicast", "peer", "none"]
"""multicast: one address that the NVLink switch fans out to all GPUs, and sums from. peer: every
rank maps the memory of every other. none: GPUs are not used.
"""

# multimem.ld_reduce and multimem.st are instructions of Hopper and later; the kernels need Ampere.
_MULTICAST_CAPABILITY = (9, 0)
_LOWEST_CAPABILITY = (8, 0)


@dataclass(frozen=True, kw_only=True, slots=True)
class CudaCapability:
    """The GPU of one rank, as that rank sees it."""

    host: str
    """Equal for ranks that can pass file descriptors to each other."""
    problem: str
    """Why this rank has no usable GPU; empty if it has one."""
    device: str = ""
    """The GPU's UUID. Ordinals say nothing: every rank may see other devices, or only its own."""
    name: str = ""
    compute_capability: tuple[int, int] = (0, 0)
    num_sms: int = 0
    has_multicast: bool = False
    allows_overlap: bool = False
    """Whether TORCH_SYMM_MEM_ALLOW_OVERLAPPING_DEVICES lets ranks share a GPU."""
    unreachable: tuple[str, ...] = ()
    """UUIDs of visible GPUs whose memory this one cannot map."""
    table_digest: str = ""
    """Of the measured table that algorithms are chosen by; empty for none."""
    slot_bytes: int = 0
    """Of each staging slot that the rank makes: memory is shared in equal sizes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AgreedCapability:
    """What all ranks of a world do with their GPUs."""

    reach: Reach
    reason: str
    """Why not more than that; names the rank that stands in the way."""
    world_size: int
    num_devices: int = 0
    """GPUs that the ranks have together; fewer than ranks where some share one."""
    compute_capability: tuple[int, int] = (0, 0)
    """The lowest of all ranks."""
    num_sms: int = 0
    """The fewest of all ranks."""
    gpu: str = ""
    """The name of the GPUs, where all ranks have the same; else empty."""

    @property
    def is_overlapping(self) -> bool:
        """Whether ranks share a GPU, and with it take turns on it."""
        return self.num_devices < self.world_size

    def explain(self) -> str:
        """Return one readable line."""
        return f"{self.reach} over {self.num_devices} GPU(s): {self.reason}"

    def without_multicast(self, reason: str) -> "AgreedCapability":
        """Return what is left when multicast memory was not to be had after all."""
        return replace(self, reach="peer", reason=reason)


def agree(capabilities: Sequence[CudaCapability]) -> AgreedCapability:
    """Return what the ranks do together.

    Args:
        capabilities: of every rank, in rank order; the same on every rank.
    """
    for obstacle in (_no_gpu, _several_hosts, _other_options, _shared_gpu, _out_of_reach):
        reason = obstacle(capabilities)
        if reason is not None:
            return AgreedCapability(reach="none", reason=reason, world_size=len(capabilities))
    missing = _lacks_multicast(capabilities)
    lowest = min(it.compute_capability for it in capabilities)
    names = {it.name for it in capabilities}
    return AgreedCapability(
        reach="multicast" if missing is None else "peer",
        reason=missing
        or f"every GPU takes part in NVLink multicast (compute capability {_dotted(lowest)})",
        world_size=len(capabilities),
        num_devices=len({it.device for it in capabilities}),
        compute_capability=lowest,
        num_sms=min(it.num_sms for it in capabilities),
        gpu=names.pop() if len(names) == 1 else "",
    )


def _no_gpu(capabilities: Sequence[CudaCapability]) -> str | None:
    broken = _first(capabilities, lambda it: bool(it.problem))
    if broken is not None:
        return f"rank {broken} has no usable GPU: {capabilities[broken].problem}"
    old = _first(capabilities, lambda it: it.compute_capability < _LOWEST_CAPABILITY)
    if old is None:
        return None
    return (
        f"{_gpu(capabilities, old)} has compute capability "
        f"{_dotted(capabilities[old].compute_capability)}, the kernels need "
        f"{_dotted(_LOWEST_CAPABILITY)}"
    )


def _several_hosts(capabilities: Sequence[CudaCapability]) -> str | None:
    far = _first(capabilities, lambda it: it.host != capabilities[0].host)
    if far is None:
        return None
    return (
        f"rank {far} is on another host than rank 0: GPU memory is shared by file descriptors, "
        "which do not leave a host"
    )


def _other_options(capabilities: Sequence[CudaCapability]) -> str | None:
    first = capabilities[0]
    other = _first(capabilities, lambda it: it.table_digest != first.table_digest)
    if other is not None:
        return (
            f"rank {other} has another TOKENFABRIC_CUDA_TABLE than rank 0, and would choose other "
            "algorithms: give all ranks the same file, or none"
        )
    other = _first(capabilities, lambda it: it.slot_bytes != first.slot_bytes)
    if other is None:
        return None
    return (
        f"TOKENFABRIC_CUDA_SLOT_MIB gives rank 0 slots of {first.slot_bytes} bytes and rank "
        f"{other} of {capabilities[other].slot_bytes}: set it to the same on all ranks"
    )


def _shared_gpu(capabilities: Sequence[CudaCapability]) -> str | None:
    differs = _first(capabilities, lambda it: it.allows_overlap != capabilities[0].allows_overlap)
    if differs is not None:
        # torch then sets up multicast on some ranks only, which wait for the others for ever.
        return (
            f"TORCH_SYMM_MEM_ALLOW_OVERLAPPING_DEVICES is set on rank 0 or rank {differs}, but not "
            "on both: set it on all ranks or on none"
        )
    owner: dict[str, int] = {}
    for rank, it in enumerate(capabilities):
        first = owner.setdefault(it.device, rank)
        if first != rank and not it.allows_overlap:
            return (
                f"ranks {first} and {rank} have the same GPU ({it.name}, {it.device}): give each "
                "rank its own; for tests set TORCH_SYMM_MEM_ALLOW_OVERLAPPING_DEVICES=1"
            )
    return None


def _out_of_reach(capabilities: Sequence[CudaCapability]) -> str | None:
    rank_of = {it.device: rank for rank, it in enumerate(capabilities)}
    for rank, it in enumerate(capabilities):
        far = next((device for device in it.unreachable if device in rank_of), None)
        if far is not None:
            return (
                f"{_gpu(capabilities, rank)} cannot map the memory of rank {rank_of[far]}'s GPU: "
                "neither NVLink nor PCIe peer access joins them"
            )
    return None


def _lacks_multicast(capabilities: Sequence[CudaCapability]) -> str | None:
    if len(capabilities) == 1:
        return "a world of one rank has nobody to reach"
    if len({it.device for it in capabilities}) < len(capabilities):
        return "ranks share a GPU, and multicast reaches a GPU once"
    if any(it.allows_overlap for it in capabilities):
        return "TORCH_SYMM_MEM_ALLOW_OVERLAPPING_DEVICES is set, which switches multicast off"
    old = _first(capabilities, lambda it: it.compute_capability < _MULTICAST_CAPABILITY)
    if old is not None:
        return (
            f"{_gpu(capabilities, old)} has compute capability "
            f"{_dotted(capabilities[old].compute_capability)}, multicast needs "
            f"{_dotted(_MULTICAST_CAPABILITY)}"
        )
    without = _first(capabilities, lambda it: not it.has_multicast)
    return None if without is None else f"{_gpu(capabilities, without)} has no multicast"


def _first(
    capabilities: Sequence[CudaCapability], holds: Callable[[CudaCapability], bool]
) -> int | None:
    return next((rank for rank, it in enumerate(capabilities) if holds(it)), None)


def _gpu(capabilities: Sequence[CudaCapability], rank: int) -> str:
    return f"the GPU of rank {rank} ({capabilities[rank].name})"


def _dotted(capability: tuple[int, int]) -> str:
    return f"{capability[0]}.{capability[1]}"
