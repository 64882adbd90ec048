"""Processors and memory, as the kernel's files tell them."""

import os
import platform
from pathlib import Path

from launch.doctor.machine import Cpu, Memory
from tokenfabric.cores import read_quota
from tokenfabric.topology import usable_cores

_ROOT = Path("/")
_FEATURES = (
    "avx", "avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni",
    "avx512_bf16", "avx512_fp16", "avx512vbmi", "amx_tile", "amx_bf16", "amx_int8",
    "asimd", "asimdhp", "asimddp", "bf16", "i8mm", "sve", "sve2",
)  # fmt: skip
"""Those that a row kernel or torch chooses by; the kernel lists hundreds."""


def read_cpu(root: Path = _ROOT) -> Cpu:
    """Return what /proc and /sys say about the processors."""
    fields: dict[str, str] = {}
    for line in (root / "proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        fields.setdefault(name.strip(), value.strip())
    flags = set(fields.get("flags", fields.get("Features", "")).split())
    packages = (root / "sys/devices/system/cpu").glob("cpu[0-9]*/topology/physical_package_id")
    nodes = list((root / "sys/devices/system/node").glob("node[0-9]*"))
    return Cpu(
        model=_model(fields),
        architecture=platform.machine(),
        features=tuple(feature for feature in _FEATURES if feature in flags),
        num_sockets=len({path.read_text().strip() for path in packages}) or 1,
        num_numa_nodes=len(nodes) or 1,
        num_cores=os.cpu_count() or 1,
        usable_cores=usable_cores(),
        quota_cores=read_quota(root),
    )


def read_memory(root: Path = _ROOT) -> Memory:
    """Return what /proc/meminfo says."""
    fields = dict(line.split(":", 1) for line in (root / "proc/meminfo").read_text().splitlines())
    return Memory(
        total_bytes=int(fields["MemTotal"].split()[0]) << 10,
        available_bytes=int(fields["MemAvailable"].split()[0]) << 10,
    )


def _model(fields: dict[str, str]) -> str:
    if "model name" in fields:
        return fields["model name"]
    # Arm's kernels give numbers only.
    named = [f"{key} {fields[key]}" for key in ("CPU implementer", "CPU part") if key in fields]
    return ", ".join(named) or "unknown"
