"""What will run on a machine, why the rest will not, and what to do about it. Pure.

`find` is a function of a `Machine` and of nothing else.
"""

from dataclasses import dataclass

from launch.doctor.cpu_paths import build, row_kernels, several_hosts, shared_memory
from launch.doctor.execution_path import ExecutionPath
from launch.doctor.gpu_paths import gpu_paths
from launch.doctor.machine import FailedProbe, Machine
from launch.doctor.model_paths import models, ray


@dataclass(frozen=True, kw_only=True, slots=True)
class Findings:
    """The whole answer."""

    paths: tuple[ExecutionPath, ...]
    hints: tuple[str, ...]
    """What is not wrong, but good to know on this machine."""
    failed_probes: tuple[FailedProbe, ...]

    @property
    def is_well(self) -> bool:
        """Whether everything essential runs."""
        return all(path.runs for path in self.paths if path.is_essential)

    def path(self, name: str) -> ExecutionPath:
        """Return the path of that name."""
        return next(path for path in self.paths if path.name == name)


def find(machine: Machine) -> Findings:
    """Return what will run on a machine."""
    basic = shared_memory(machine)
    return Findings(
        paths=(
            basic,
            *row_kernels(machine),
            several_hosts(basic),
            *gpu_paths(machine),
            *models(machine, basic),
            ray(machine),
            build(machine),
        ),
        hints=_hints(machine),
        failed_probes=machine.failed_probes,
    )


def _hints(machine: Machine) -> tuple[str, ...]:
    hints: list[str] = []
    cpu = machine.cpu
    if cpu is not None:
        cores = len(cpu.usable_cores)
        if cpu.quota_cores is not None and cpu.quota_cores < cores:
            hints.append(
                f"the container grants {cpu.quota_cores:g} cores' worth of time on {cores} cores: "
                f"use at most {max(1, int(cpu.quota_cores))} rank(s) of one thread"
            )
        elif cores < 2:
            hints.append(
                "this process may use one core: two ranks run, but take turns on it at every "
                "barrier"
            )
        if cpu.num_numa_nodes > 1:
            hints.append(f"{cpu.num_numa_nodes} NUMA nodes: keep each rank's cores on one of them")
    torch = machine.torch
    if torch is not None and torch.num_gpus:
        hints.append(
            "models run on CPUs in this version; the operations of tokenweave run on GPUs in a "
            "world made with tokenfabric.init(device='cuda')"
        )
    return tuple(hints)
