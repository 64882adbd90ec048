"""Ask this machine everything; an answer that does not come is recorded and stops nothing."""

import platform
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from launch.doctor import child, hardware, sharing, tools
from launch.doctor.machine import (
    FailedProbe,
    Gpu,
    Gpus,
    Machine,
    NativeModule,
    Package,
    Torch,
)
from launch.models import DEMO_MODEL, find_checkpoint
from tokenfabric import env
from tokenfabric.errors import ConfigError

_PACKAGES = ("transformers", "safetensors", "gguf", "accelerate", "psutil", "ray")
# Children that import at the same time; more would only take each other's core.
_NUM_CHILDREN = 2

Answer = TypeVar("Answer")


def look() -> Machine:
    """Return what this machine has. Takes some seconds: packages are imported, in other processes.

    Never raises for what it finds: a question that failed is one of `failed_probes`.
    """
    failed: list[FailedProbe] = []

    def asked(probe: str, question: Callable[[], Answer]) -> Answer | None:
        try:
            return question()
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            failed.append(FailedProbe(probe=probe, reason=reason))
            return None

    with ThreadPoolExecutor(_NUM_CHILDREN) as pool:
        torch = pool.submit(asked, "torch", _ask_torch)
        native = pool.submit(asked, "native module", _ask_native)
        gpus = pool.submit(asked, "GPUs", _ask_gpus)
        packages = [
            pool.submit(asked, name, lambda name=name: Package(**child.ask("package", name)))
            for name in _PACKAGES
        ]
        cpu = asked("processors", hardware.read_cpu)
        memory = asked("memory", hardware.read_memory)
        trials = asked("shared memory", sharing.try_sharing)
        compiler = asked("compiler", tools.find_compiler)
        cmake = asked("cmake", tools.find_cmake)
        demo_model = asked("demo model", _demo_model_problem)
        found = [package.result() for package in packages]
    return Machine(
        system=platform.system(),
        kernel=platform.release(),
        python=platform.python_version(),
        isa=env.isa(),
        cpu=cpu,
        memory=memory,
        sharing=trials,
        gpus=gpus.result(),
        compiler=compiler,
        cmake=cmake,
        torch=torch.result(),
        native=native.result(),
        packages=tuple(package for package in found if package is not None),
        demo_model="it could not be looked for" if demo_model is None else demo_model or None,
        failed_probes=tuple(failed),
    )


def _ask_torch() -> Torch:
    return Torch(**child.ask("torch"))


def _ask_native() -> NativeModule:
    fields = child.ask("native")
    return NativeModule(**fields | {"row_kernels": tuple(fields["row_kernels"])})


def _ask_gpus() -> Gpus:
    fields = child.ask("gpus")
    devices = tuple(Gpu(**it | {"peers": tuple(it["peers"])}) for it in fields["devices"])
    gpus = Gpus(**fields | {"devices": devices})
    tool = shutil.which("nvidia-smi")
    if gpus.driver is None and tool is not None:
        return Gpus(driver=None, devices=(), problem=f"{gpus.problem}; yet there is {tool}")
    return gpus


def _demo_model_problem() -> str:
    """Return why the demo model cannot be used, "" if it can."""
    try:
        find_checkpoint(DEMO_MODEL)
    except ConfigError as error:
        return str(error)
    return ""
