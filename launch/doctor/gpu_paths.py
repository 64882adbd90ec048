"""What this host's GPUs could do together, one rank each. Pure."""

import re
from collections.abc import Iterable

from launch.doctor.execution_path import ExecutionPath
from launch.doctor.machine import Gpu, Gpus, Machine, Torch
from tokenfabric.cuda.capability import AgreedCapability, CudaCapability, agree

_UNPROVEN = "no measurement on several GPUs has been published with this version"


def gpu_paths(machine: Machine) -> Iterable[ExecutionPath]:
    """Yield the CUDA paths; what the ranks would agree on says which of them are taken."""
    problem = _why_no_kernels(machine)
    agreed = None if machine.gpus is None else _agreement(machine.gpus)
    lacks_gpus = _lacks_gpus(machine.gpus)
    kernels = machine.native.cuda_kernels if machine.native is not None else ""
    advice = _advice(problem, machine.torch)
    yield _path("CUDA kernels", problem or lacks_gpus, kernels, advice)
    for name, reaches in (
        ("CUDA, NVLink multicast (multimem)", ("multicast",)),
        ("CUDA, peer to peer", ("multicast", "peer")),
    ):
        lacks = problem or lacks_gpus or _lacks(agreed, reaches)
        why = "" if agreed is None else f"{agreed.explain()}; {_UNPROVEN}"
        yield _path(name, lacks, why, advice)


def _path(name: str, lacks: str | None, why: str, advice: tuple[str, ...]) -> ExecutionPath:
    if lacks is None:
        return ExecutionPath(name=name, runs=True, why=why)
    return ExecutionPath(name=name, runs=False, why=lacks, advice=advice)


def _advice(problem: str | None, torch: Torch | None) -> tuple[str, ...]:
    """Return how to get kernels where a build has none."""
    if problem is None or "TOKEN_CUDA=on" not in problem:
        return ()
    build = "" if torch is None or torch.build is None else torch.build
    found = re.match(r"CUDA (\d+)", build)
    extra = f"cuda{found[1]}" if found else "cuda13"
    return (
        "build it where nvcc is: TOKEN_CUDA=on pip install -e .",
        f"or let them be compiled when they are first needed: pip install 'tokenfabric[{extra}]'",
    )


def _why_no_kernels(machine: Machine) -> str | None:
    """Return why this process could launch nothing, None if it could."""
    if machine.native is None or machine.native.problem is not None:
        return "the native module does not load"
    if machine.native.cuda_problem is not None:
        return machine.native.cuda_problem
    if machine.torch is None or machine.torch.problem is not None:
        return "torch does not work"
    if not machine.torch.num_gpus:
        return f"torch {machine.torch.version} ({machine.torch.build}) finds no usable GPU"
    return None


def _lacks_gpus(gpus: Gpus | None) -> str | None:
    if gpus is None:
        return "whether there is a GPU is not known"
    return None if gpus.devices else f"no GPU: {gpus.problem}"


def _agreement(gpus: Gpus) -> AgreedCapability | None:
    """Return what a rank on each GPU of this host would agree on."""
    count = len(gpus.devices)
    capabilities = [_capability(index, gpu, count) for index, gpu in enumerate(gpus.devices)]
    return agree(capabilities) if capabilities else None


def _capability(index: int, gpu: Gpu, count: int) -> CudaCapability:
    major, _, minor = gpu.compute_capability.partition(".")
    others = set(range(count)) - {index}
    return CudaCapability(
        host="this",
        problem="",
        device=str(index),
        name=gpu.name,
        compute_capability=(int(major), int(minor)),
        has_multicast=gpu.has_multicast and gpu.num_nvlinks != 0,
        unreachable=tuple(str(other) for other in sorted(others - set(gpu.peers))),
    )


def _lacks(agreed: AgreedCapability | None, reaches: tuple[str, ...]) -> str | None:
    """Return why the ranks would not use any of these ways, None if they would."""
    if agreed is None:
        return "whether GPUs reach each other is not known"
    if agreed.world_size < 2:
        return "only 1 GPU"
    return None if agreed.reach in reaches else agreed.reason
