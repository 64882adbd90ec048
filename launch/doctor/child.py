"""Questions whose answer could crash or hang whoever asks: each is asked in a process of its own.

The answer comes back as JSON, the last line of the child's stdout; what else a library writes there
is ignored.
"""

import importlib
import json
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any

_TIMEOUT_S = 120.0
# With this process's own search path: a package that is not installed, only on it, is found too.
_BOOT = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from launch.doctor.child import answer; answer(sys.argv[2], sys.argv[3:])"
)


class NoAnswerError(Exception):
    """The child died, hung or failed; the message says which."""


def ask(question: str, *args: str, timeout_s: float = _TIMEOUT_S) -> dict[str, Any]:
    """Return the answer to one of `QUESTIONS`, found in a new process.

    Raises:
        NoAnswerError: there was none within `timeout_s` seconds.
    """
    command = [sys.executable, "-c", _BOOT, json.dumps(sys.path), question, *args]
    try:
        run = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=timeout_s
        )
    except subprocess.TimeoutExpired:
        raise NoAnswerError(f"no answer after {timeout_s:g} s") from None
    last_words = next(reversed(run.stderr.strip().splitlines()), "it said nothing")
    if run.returncode < 0:
        raise NoAnswerError(f"killed by {_signal_name(-run.returncode)}: {last_words}")
    if run.returncode != 0:
        raise NoAnswerError(last_words)
    answered: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    return answered


def answer(question: str, args: list[str]) -> None:
    """Answer one question; runs in the child."""
    answered = QUESTIONS[question](*args)
    sys.stdout.write("\n" + json.dumps(answered) + "\n")


def _about_torch() -> dict[str, Any]:
    """Return the fields of `Torch`."""
    facts: dict[str, Any] = {"version": None, "build": None, "has_gloo": False, "num_gpus": 0}
    if find_spec("torch") is None:
        return facts | {"problem": "not installed"}
    try:
        import torch

        facts["version"] = torch.__version__
        facts["build"] = _build(torch.version)
        facts["num_gpus"] = torch.cuda.device_count()
        facts["has_gloo"] = _has_gloo()
    except Exception as error:
        return facts | {"problem": f"does not work: {type(error).__name__}: {error}"}
    return facts | {"problem": None}


def _has_gloo() -> bool:
    from torch import distributed

    return distributed.is_available() and distributed.is_gloo_available()


def _build(versions: Any) -> str:
    for name, key in (("CUDA", "cuda"), ("ROCm", "hip")):
        found = getattr(versions, key, None)
        if found is not None:
            return f"{name} {found}"
    return "CPU"


def _about_native() -> dict[str, Any]:
    """Return the fields of `NativeModule`."""
    from tokenfabric import native

    problem = native.why_unavailable()
    if problem is not None:
        return {"row_kernels": (), "available_bytes": None, "problem": problem}
    return {
        "row_kernels": native.weave.usable_row_kernels(),
        "available_bytes": native.fabric.available_memory_bytes(),
        "problem": None,
        **_about_kernels(),
    }


def _about_kernels() -> dict[str, Any]:
    """Return the fields of `NativeModule` that need torch: which CUDA it has matters here."""
    from tokenfabric import native

    try:
        from tokenfabric.cuda.kernels.launcher import kernel_backend

        backend = kernel_backend()
    except Exception as error:
        problem = f"whether there are CUDA kernels is not known: {type(error).__name__}: {error}"
        return {"cuda_problem": problem, "cuda_kernels": ""}
    refusal = backend.reason if backend.way == "none" else None
    return {
        "cuda_problem": refusal or native.cuda.runtime().problem or None,
        "cuda_kernels": backend.reason,
    }


def _about_gpus() -> dict[str, Any]:
    """Return the fields of `Gpus`."""
    from launch.doctor.driver import DriverError, read_gpus

    try:
        return asdict(read_gpus())
    except DriverError as error:
        return {"driver": None, "devices": (), "problem": str(error)}


def _about_package(name: str) -> dict[str, Any]:
    """Return the fields of `Package`."""
    try:
        found = version(name)
    except PackageNotFoundError:
        return {"name": name, "version": None, "problem": "not installed"}
    try:
        importlib.import_module(name)
    except Exception as error:
        problem = f"does not import: {type(error).__name__}: {error}"
        return {"name": name, "version": found, "problem": problem}
    return {"name": name, "version": found, "problem": None}


def _signal_name(number: int) -> str:
    return signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"


QUESTIONS: Mapping[str, Callable[..., dict[str, Any]]] = {
    "torch": _about_torch,
    "native": _about_native,
    "gpus": _about_gpus,
    "package": _about_package,
}
