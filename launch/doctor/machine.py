"""The facts about a machine from which everything else follows. Pure: nothing is asked here.

`problem` is a sentence that says what is wrong, None when nothing is. A part of `Machine` that is
None could not be asked at all; `failed_probes` says why.
"""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Cpu:
    """The processors and what of them this process may use."""

    model: str
    architecture: str
    """As `uname -m` says it: x86_64, aarch64."""
    features: tuple[str, ...]
    """Instruction sets that matter here, by the kernel's names."""
    num_sockets: int
    num_numa_nodes: int
    num_cores: int
    """Of the host, hyperthreads counted."""
    usable_cores: tuple[int, ...]
    """Which this process may be scheduled on."""
    quota_cores: float | None
    """Core-seconds a second that the container may use; None: no limit."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Memory:
    """Main memory of the host."""

    total_bytes: int
    available_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """Something that was really done, to see whether it works."""

    name: str
    problem: str | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Gpu:
    """One CUDA device."""

    name: str
    memory_bytes: int
    compute_capability: str
    has_multicast: bool
    """Whether it can take part in NVLink multicast objects."""
    peers: tuple[int, ...]
    """Devices whose memory it can map."""
    num_nvlinks: int | None
    """Active ones; None when the driver was not able to say."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Gpus:
    """What the CUDA driver says."""

    driver: str | None
    """The highest CUDA version that it runs."""
    devices: tuple[Gpu, ...]
    problem: str | None
    """Why there are no devices, or no count of NVLinks."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Tool:
    """A program that builds need."""

    name: str
    path: str | None
    version: str | None
    problem: str | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Package:
    """A Python package, imported to see whether it works."""

    name: str
    version: str | None
    """None: not installed."""
    problem: str | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Torch:
    """The torch of this Python."""

    version: str | None
    build: str | None
    """ "CPU", or "CUDA 13.0", "ROCm 6.4"."""
    has_gloo: bool
    num_gpus: int
    """Devices that torch can use."""
    problem: str | None


@dataclass(frozen=True, kw_only=True, slots=True)
class NativeModule:
    """tokenfabric._C."""

    row_kernels: tuple[str, ...]
    """Usable on this CPU, widest first."""
    available_bytes: int | None
    """Memory that this process may still use, its control groups' limits counted."""
    problem: str | None
    cuda_problem: str | None = None
    """Why it can launch nothing on a GPU, None if it can."""
    cuda_kernels: str = ""
    """Where its CUDA kernels come from, and why."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FailedProbe:
    """A question that got no answer."""

    probe: str
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """Everything that was asked."""

    system: str
    """Linux, Darwin, ..."""
    kernel: str
    python: str
    isa: str
    """What TOKENFABRIC_ISA asks for."""
    cpu: Cpu | None
    memory: Memory | None
    sharing: tuple[Trial, ...] | None
    """What ranks need to share memory on one host."""
    gpus: Gpus | None
    compiler: Tool | None
    cmake: Tool | None
    torch: Torch | None
    native: NativeModule | None
    packages: tuple[Package, ...] | None
    demo_model: str | None
    """Why the demo model is not there, None if it is."""
    failed_probes: tuple[FailedProbe, ...] = ()

    def package(self, name: str) -> Package | None:
        """Return what is known of a package, None if it was not asked for."""
        return next((package for package in self.packages or () if package.name == name), None)
