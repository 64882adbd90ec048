"""Which packages are needed, in which versions. Pure."""

import re

from launch.doctor.machine import Machine

# Of pyproject.toml, but for torch, which it leaves to the user.
NEEDED = {
    "torch": "2.11",
    "transformers": "5.24",
    "safetensors": "0.4",
    "gguf": "0.17",
}
"""The oldest versions that are enough."""
TOO_NEW = {"transformers": "6"}
"""The first versions that are too much."""


def torch_problem(machine: Machine) -> str | None:
    """Return why ranks cannot use this torch, None if they can."""
    torch = machine.torch
    if torch is None:
        return "whether torch works is not known"
    if torch.problem is not None:
        return f"torch: {torch.problem}"
    problem = _version_problem("torch", torch.version)
    if problem is None and not torch.has_gloo:
        problem = f"torch {torch.version} was built without torch.distributed's gloo"
    return problem


def package_problem(machine: Machine, name: str) -> str | None:
    """Return why a package cannot be used, None if it can."""
    package = machine.package(name)
    if package is None:
        return f"whether {name} works is not known"
    if package.problem is not None:
        return f"{name}: {package.problem}"
    return _version_problem(name, package.version)


def _version_problem(name: str, version: str | None) -> str | None:
    if version is None:
        return f"{name} has no version"
    if name in NEEDED and _numbers(version) < _numbers(NEEDED[name]):
        return f"{name} {version} is older than {NEEDED[name]}"
    if name in TOO_NEW and _numbers(version) >= _numbers(TOO_NEW[name]):
        return f"{name} {version} is not older than {TOO_NEW[name]}"
    return None


def _numbers(version: str) -> tuple[int, ...]:
    """Return "2.13.0+cpu" as (2, 13, 0)."""
    return tuple(int(number) for number in re.findall(r"\d+", version.partition("+")[0]))
