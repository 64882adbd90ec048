"""Machines for the doctor's tests: one that has everything, and what is taken from it."""

from dataclasses import replace

from launch.doctor.machine import (
    Cpu,
    Gpu,
    Gpus,
    Machine,
    Memory,
    NativeModule,
    Package,
    Tool,
    Torch,
    Trial,
)

CPU = Cpu(
    model="Made-Up 9000",
    architecture="x86_64",
    features=(
        "avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_bf16",
        "avx512vbmi",
    ),
    num_sockets=1,
    num_numa_nodes=1,
    num_cores=8,
    usable_cores=tuple(range(8)),
    quota_cores=None,
)  # fmt: skip
GPU = Gpu(
    name="H-Something",
    memory_bytes=80 << 30,
    compute_capability="9.0",
    has_multicast=True,
    peers=(1,),
    num_nvlinks=18,
)
NO_GPUS = Gpus(driver=None, devices=(), problem="no NVIDIA driver")
TORCH = Torch(version="2.13.0+cpu", build="CPU", has_gloo=True, num_gpus=0, problem=None)
NATIVE = NativeModule(
    row_kernels=("avx512_bf16", "avx512", "avx2", "scalar"), available_bytes=1 << 34, problem=None
)
NO_NATIVE = NativeModule(row_kernels=(), available_bytes=None, problem="_C is not built")
COMPILER = Tool(name="c++", path="/usr/bin/c++", version="c++ 12.2.0", problem=None)
SHARING = ("memfd_create", "SCM_RIGHTS", "pidfd_open")
VERSIONS = {
    "transformers": "5.24.0",
    "safetensors": "0.8.0",
    "gguf": "0.19.0",
    "accelerate": "1.15.0",
    "psutil": "7.2.2",
    "ray": None,
}

MACHINE = Machine(
    system="Linux",
    kernel="6.1",
    python="3.12.1",
    isa="auto",
    cpu=CPU,
    memory=Memory(total_bytes=1 << 35, available_bytes=1 << 34),
    sharing=tuple(Trial(name=name, problem=None) for name in SHARING),
    gpus=NO_GPUS,
    compiler=COMPILER,
    cmake=replace(COMPILER, name="cmake", version="cmake version 3.28"),
    torch=TORCH,
    native=NATIVE,
    packages=tuple(
        Package(name=name, version=version, problem=None if version else "not installed")
        for name, version in VERSIONS.items()
    ),
    demo_model=None,
)


def with_package(name: str, version: str | None, problem: str | None) -> Machine:
    """Return the machine with another state of one package."""
    kept = [package for package in MACHINE.packages or () if package.name != name]
    changed = Package(name=name, version=version, problem=problem)
    return replace(MACHINE, packages=(*kept, changed))


def with_broken(step: str, problem: str) -> Machine:
    """Return the machine on which one step of sharing memory fails."""
    trials = tuple(Trial(name=n, problem=problem if n == step else None) for n in SHARING)
    return replace(MACHINE, sharing=trials)


def with_gpus(*devices: Gpu, problem: str | None = None) -> Machine:
    """Return the machine with GPUs."""
    return replace(MACHINE, gpus=Gpus(driver="13.0", devices=devices, problem=problem))
