"""`tokenfabric doctor`: what this machine has, what will run on it, and what the rest needs.

No ranks are started. The facts are in launch/doctor/machine.py, the conclusions in findings.py.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict

from launch.doctor.findings import Findings, find
from launch.doctor.machine import Cpu, Gpus, Machine, Package, Tool
from launch.doctor.probes import look
from launch.report import Reporter, Table
from tokenfabric.placement import format_cores

_SCHEMA = 1
"""Of the JSON object: raised when a field goes or changes its meaning, not when one is added."""
_NOT_KNOWN = "not known, see below"


def run(reporter: Reporter, *, as_json: bool) -> bool:
    """Look at this machine and say what was found; return whether everything essential runs.

    Args:
        reporter: gets two tables, or the JSON object as its only text.
        as_json: one object with the keys schema, is_well, machine, paths, hints, failed_probes.
    """
    machine = look()
    findings = find(machine)
    if as_json:
        reporter.text(to_json(machine, findings) + "\n")
    else:
        reporter.table(machine_table(machine))
        reporter.table(paths_table(findings))
    return findings.is_well


def to_json(machine: Machine, findings: Findings) -> str:
    """Return facts and findings as one JSON object."""
    answer = {"schema": _SCHEMA, "is_well": findings.is_well, "machine": asdict(machine)}
    return json.dumps(answer | asdict(findings), indent=2)


def machine_table(machine: Machine) -> Table:
    """Return the facts as a table."""
    return Table(
        title="This machine",
        columns=("what", "found"),
        num_text_columns=2,
        rows=tuple(_facts(machine)),
        notes=tuple(f"{failed.probe}: {failed.reason}" for failed in machine.failed_probes),
    )


def paths_table(findings: Findings) -> Table:
    """Return what runs as a table, with what to do below it."""
    advice = dict.fromkeys(
        f"{path.name}: {step}" for path in findings.paths if not path.runs for step in path.advice
    )
    return Table(
        title="What runs here",
        columns=("path", "runs", "why"),
        num_text_columns=3,
        rows=tuple((path.name, "yes" if path.runs else "no", path.why) for path in findings.paths),
        notes=(*advice, *findings.hints),
    )


def _facts(machine: Machine) -> Iterator[tuple[str, str]]:
    yield "system", f"{machine.system} {machine.kernel}, Python {machine.python}"
    yield from _cpu_facts(machine.cpu)
    yield "memory", _memory(machine)
    for trial in machine.sharing or ():
        yield trial.name, _or_works(trial.problem)
    yield from _gpu_facts(machine.gpus)
    yield "compiler", _tool(machine.compiler)
    yield "cmake", _tool(machine.cmake)
    torch, native = machine.torch, machine.native
    yield (
        "torch",
        _NOT_KNOWN if torch is None else torch.problem or f"{torch.version}, {torch.build}",
    )
    yield "native module", _NOT_KNOWN if native is None else native.problem or "loads"
    for package in machine.packages or ():
        yield package.name, _package(package)
    yield "demo model", machine.demo_model or "installed"


def _cpu_facts(cpu: Cpu | None) -> Iterator[tuple[str, str]]:
    if cpu is None:
        yield "processor", _NOT_KNOWN
        return
    yield "processor", f"{cpu.model} ({cpu.architecture})"
    yield "features", " ".join(cpu.features) or "none that matters here"
    usable = f"{len(cpu.usable_cores)} of {cpu.num_cores} usable ({format_cores(cpu.usable_cores)})"
    quota = "" if cpu.quota_cores is None else f", time for {cpu.quota_cores:g}"
    yield (
        "cores",
        f"{usable}{quota}; {cpu.num_sockets} socket(s), {cpu.num_numa_nodes} NUMA node(s)",
    )


def _gpu_facts(gpus: Gpus | None) -> Iterator[tuple[str, str]]:
    if gpus is None:
        yield "GPUs", _NOT_KNOWN
        return
    if not gpus.devices or gpus.problem is not None:
        yield "GPUs", gpus.problem or "none"
    for idx, gpu in enumerate(gpus.devices):
        links = "NVLinks not known" if gpu.num_nvlinks is None else f"{gpu.num_nvlinks} NVLink(s)"
        yield (
            f"GPU {idx}",
            f"{gpu.name}, {_gigabytes(gpu.memory_bytes)}, compute capability "
            f"{gpu.compute_capability}, {links}, {'' if gpu.has_multicast else 'no '}multicast, "
            f"driver for CUDA {gpus.driver}",
        )


def _tool(tool: Tool | None) -> str:
    if tool is None:
        return _NOT_KNOWN
    if tool.path is None:
        return tool.problem or "not found"
    return f"{tool.version} at {tool.path}" + (f": {tool.problem}" if tool.problem else "")


def _package(package: Package) -> str:
    if package.version is None:
        return package.problem or "not installed"
    return package.version + (f": {package.problem}" if package.problem else "")


def _memory(machine: Machine) -> str:
    memory, native = machine.memory, machine.native
    if memory is None:
        return _NOT_KNOWN
    available = memory.available_bytes
    if native is not None and native.available_bytes is not None:
        available = min(available, native.available_bytes)
    return f"{_gigabytes(memory.total_bytes)}, {_gigabytes(available)} available to this process"


def _or_works(problem: str | None) -> str:
    return "works" if problem is None else problem


def _gigabytes(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.1f} GB"
