"""Which kernels a process launches, and why. Pure."""

from dataclasses import dataclass
from typing import Literal

Asked = Literal["auto", "compiled", "nvrtc"]
"""See `tokenfabric.env.cuda_kernels`."""
Way = Literal["compiled", "nvrtc", "none"]
"""compiled: those of the native module. nvrtc: the same sources, compiled when first needed. none:
no kernel can be launched here.
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class BackendFacts:
    """What this process has."""

    asked: Asked = "auto"
    is_compiled: bool
    """Whether the native module was built with CUDA."""
    torch_cuda: str | None
    """The CUDA that torch is built for, "13.0"; None: a torch for CPUs."""
    cupy: str = ""
    """Version of CuPy; empty if it cannot be used."""
    cupy_problem: str = ""
    nvrtc: str = ""
    """Version of NVRTC; empty if it cannot be used."""
    nvrtc_problem: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class KernelBackend:
    """What was chosen."""

    way: Way
    reason: str
    """For people; with "none" it says what to install."""


def choose_backend(facts: BackendFacts) -> KernelBackend:
    """Return where kernels come from: compiled in if there are such, else NVRTC and CuPy."""
    if facts.is_compiled and facts.asked != "nvrtc":
        return KernelBackend(way="compiled", reason="kernels are compiled in")
    if facts.asked == "compiled":
        return KernelBackend(
            way="none",
            reason="TOKENFABRIC_CUDA_KERNELS=compiled, and this build has no CUDA kernels: "
            f"{_BUILD}, or unset the variable",
        )
    why = "asked for" if facts.asked == "nvrtc" else "this build has none"
    missing = [problem for problem in (facts.cupy_problem, facts.nvrtc_problem) if problem]
    if missing:
        return KernelBackend(
            way="none",
            reason=f"{_cannot(facts)} ({'; '.join(missing)}): install {_extra(facts)}, or {_BUILD}",
        )
    return KernelBackend(
        way="nvrtc",
        reason=f"kernels are compiled by NVRTC {facts.nvrtc} when they are first needed and "
        f"launched by CuPy {facts.cupy}: {why}",
    )


_BUILD = "build it where nvcc is, with TOKEN_CUDA=on"


def _cannot(facts: BackendFacts) -> str:
    if facts.is_compiled:
        return "TOKENFABRIC_CUDA_KERNELS=nvrtc, and CUDA kernels cannot be compiled here"
    return "this build has no CUDA kernels, and they cannot be compiled here"


def _extra(facts: BackendFacts) -> str:
    """Return what brings CuPy and NVRTC for the CUDA of torch."""
    if facts.torch_cuda is None:
        return "tokenfabric[cuda13] or tokenfabric[cuda12], beside a torch for the same CUDA"
    return f"tokenfabric[cuda{facts.torch_cuda.partition('.')[0]}]"
