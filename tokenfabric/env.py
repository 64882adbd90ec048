"""Every environment variable this library reads, in one place. Nothing here writes one.

RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR, MASTER_PORT are torchrun's. CXX is
CMake's. Ours:

TOKENFABRIC_ISA         row kernels on CPU: auto, avx512_bf16, avx512, avx2, scalar
TOKENFABRIC_CACHE_DIR   where converted checkpoints and compiled CUDA kernels are kept
TOKENFABRIC_HOST_ID     which host this rank counts as, see host_id()
TOKENFABRIC_CUDA_KERNELS    where CUDA kernels come from: auto, compiled, nvrtc
TOKENFABRIC_CUDA_TABLE  measured times that GPU algorithms are chosen by, a JSON file
TOKENFABRIC_CUDA_SLOT_MIB   size of each of a GPU world's three staging slots, default 64
TOKENFABRIC_CUDA_CHECKS 1: GPU ranks compare what they call at every first barrier

TORCH_SYMM_MEM_ALLOW_OVERLAPPING_DEVICES is torch's: several ranks on one GPU, for tests.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast, get_args

from tokenfabric.errors import ConfigError

RANK_VARIABLES = (
    "RANK",
    "WORLD_SIZE",
    "LOCAL_RANK",
    "LOCAL_WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
)

CudaKernels = Literal["auto", "compiled", "nvrtc"]


@dataclass(frozen=True, kw_only=True, slots=True)
class RankInfo:
    """Where this process stands, as torchrun or Ray say it."""

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    master_addr: str
    master_port: int

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world_size:
            raise ConfigError(f"RANK={self.rank} is not in a world of WORLD_SIZE={self.world_size}")
        if not 0 <= self.local_rank < self.local_world_size:
            raise ConfigError(
                f"LOCAL_RANK={self.local_rank} is not below "
                f"LOCAL_WORLD_SIZE={self.local_world_size}"
            )


def rank_info_from_env() -> RankInfo | None:
    """Read torchrun's six variables.

    Returns:
        None when none of them is set: this process is a world of its own.

    Raises:
        ConfigError: only some are set, or one is not a number.
    """
    found = {name: os.environ[name] for name in RANK_VARIABLES if name in os.environ}
    # A shell that exports only an address or port has not started a gang.
    if not {"RANK", "WORLD_SIZE", "LOCAL_RANK"} & found.keys():
        return None
    missing = [name for name in RANK_VARIABLES if name not in found]
    if missing:
        raise ConfigError(
            f"{', '.join(found)} are set but {', '.join(missing)} are not: set all six, or start "
            "the ranks with torchrun, which does"
        )

    def number(name: str) -> int:
        try:
            return int(found[name])
        except ValueError:
            raise ConfigError(f"{name} must be a number, got {found[name]!r}") from None

    return RankInfo(
        rank=number("RANK"),
        world_size=number("WORLD_SIZE"),
        local_rank=number("LOCAL_RANK"),
        local_world_size=number("LOCAL_WORLD_SIZE"),
        master_addr=found["MASTER_ADDR"],
        master_port=number("MASTER_PORT"),
    )


def isa() -> str:
    """Return the wanted CPU row kernels: a name, or "auto" for the widest this CPU has."""
    return os.environ.get("TOKENFABRIC_ISA", "auto")


def host_id() -> str | None:
    """Return the name of the host that this rank is to count as, None to find out.

    Ranks of one machine and user share memory exactly when their names are equal. For containers
    that share /tmp although their mount namespaces differ (equal names), for those that do not
    although nothing shows it (different ones), and for tests that play several hosts on one.
    """
    return os.environ.get("TOKENFABRIC_HOST_ID") or None


def master_addr() -> str | None:
    """Return the address that all ranks of the gang can reach, if a launcher named one."""
    return os.environ.get("MASTER_ADDR") or None


def cxx() -> str:
    """Return the C++ compiler that a build takes: CXX, as CMake reads it, or c++."""
    return os.environ.get("CXX") or "c++"


def cache_dir() -> Path:
    """Return the folder for files that can be made again; it may not exist yet."""
    chosen = os.environ.get("TOKENFABRIC_CACHE_DIR")
    if chosen:
        return Path(chosen)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "tokenfabric"


def cuda_kernels() -> CudaKernels:
    """Return which CUDA kernels are wanted: "compiled" for those of the native module, "nvrtc" for
    the same sources compiled when they are first needed, "auto" for the first if they are there.

    Raises:
        ConfigError: the variable is none of these.
    """
    text = os.environ.get("TOKENFABRIC_CUDA_KERNELS", "auto")
    for known in get_args(CudaKernels):
        if text == known:
            return cast(CudaKernels, known)
    raise ConfigError(
        f"TOKENFABRIC_CUDA_KERNELS must be one of {', '.join(get_args(CudaKernels))}, got {text!r}"
    )


def cuda_table() -> str | None:
    """Return the file of measured times that GPU algorithms are chosen by, None for formulas."""
    return os.environ.get("TOKENFABRIC_CUDA_TABLE") or None


def cuda_slot_bytes() -> int:
    """Return the size of each staging slot of a GPU world: of the largest tensor that may lie in
    private memory.

    Raises:
        ConfigError: the variable is no positive number.
    """
    text = os.environ.get("TOKENFABRIC_CUDA_SLOT_MIB", "64")
    if not text.isdecimal() or int(text) == 0:
        raise ConfigError(f"TOKENFABRIC_CUDA_SLOT_MIB must be a positive number, got {text!r}")
    return int(text) << 20


def cuda_checks() -> bool:
    """Return whether GPU ranks compare a fingerprint of every call, which costs some time."""
    return os.environ.get("TOKENFABRIC_CUDA_CHECKS") == "1"


def allows_overlapping_gpus() -> bool:
    """Return whether torch lets several ranks share a GPU."""
    return os.environ.get("TORCH_SYMM_MEM_ALLOW_OVERLAPPING_DEVICES") == "1"
