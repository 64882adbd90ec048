"""Launches kernels that were not compiled into the native module.

The launch, parameters included, comes from the native module; the code from compiler.py; CuPy puts
both together (cupy_kernel.py).
"""

import functools
import threading
from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING

import torch

from tokenfabric import env, native
from tokenfabric.cuda.kernels.backend import BackendFacts, KernelBackend, choose_backend
from tokenfabric.cuda.kernels.compiler import KernelCompiler
from tokenfabric.cuda.kernels.cupy_kernel import load_kernel
from tokenfabric.cuda.kernels.library import Nvrtc, load_nvrtc
from tokenfabric.cuda.kernels.store import KernelStore
from tokenfabric.errors import ConfigError, TokenFabricError

if TYPE_CHECKING:
    Launch = Callable[[native.cuda.KernelLaunch], None]


class KernelLauncher:
    """Launches kernels on the current GPU; each is compiled, or read, when it is first launched."""

    def __init__(
        self,
        compiler: KernelCompiler,
        load: "Callable[[str, bytes], Launch]",
        current_gpu: Callable[[], tuple[int, tuple[int, int]]],
        is_capturing: Callable[[], bool],
    ) -> None:
        """Take the parts.

        Args:
            compiler: gives symbol and code of a kernel.
            load: puts code on the current GPU and returns what launches it there.
            current_gpu: returns ordinal and compute capability of the current GPU.
            is_capturing: returns whether the current stream is being captured into a graph.
        """
        self._compiler, self._load = compiler, load
        self._current_gpu, self._is_capturing = current_gpu, is_capturing
        self._loaded: dict[tuple[int, str], Launch] = {}
        self._lock = threading.Lock()

    def __call__(self, launch: "native.cuda.KernelLaunch") -> None:
        """Put a launch on its stream.

        Raises:
            ConfigError: the kernel's first launch is inside a capture, or see `KernelStore`.
            TokenFabricError: it does not compile, or CUDA refuses.
        """
        device, capability = self._current_gpu()
        kernel = self._loaded.get((device, launch.source.kernel))
        if kernel is None:
            kernel = self._prepare(device, capability, launch.source)
        kernel(launch)

    def check(self) -> None:
        """See that kernels can be compiled for the current GPU, before ranks count on it.

        Raises:
            TopologyError, ConfigError: see `KernelCompiler.check`.
        """
        self._compiler.check(self._current_gpu()[1])

    def _prepare(
        self, device: int, capability: tuple[int, int], source: "native.cuda.KernelSource"
    ) -> "Launch":
        place = (device, source.kernel)
        with self._lock:
            if place not in self._loaded:
                if self._is_capturing():
                    raise ConfigError(
                        f"{source.kernel} is not on the GPU yet, and nothing can be loaded while a "
                        "graph is captured: make the call once before"
                    )
                self._loaded[place] = self._load(*self._compiler.load(source, capability))
            return self._loaded[place]


@functools.cache
def kernel_backend() -> KernelBackend:
    """Return where this process takes kernels from, and why. Makes no CUDA context.

    Raises:
        ConfigError: TOKENFABRIC_CUDA_KERNELS names no way to kernels.
    """
    asked, is_compiled = env.cuda_kernels(), native.cuda.runtime().is_compiled
    if asked == "compiled" or (is_compiled and asked == "auto"):
        # Nobody needs CuPy, whose import takes a second.
        cupy = nvrtc = ("", "")
    else:
        cupy, nvrtc = _about_cupy(), _about_nvrtc()
    return choose_backend(
        BackendFacts(
            asked=asked,
            is_compiled=is_compiled,
            torch_cuda=torch.version.cuda,
            cupy=cupy[0],
            cupy_problem=cupy[1],
            nvrtc=nvrtc[0],
            nvrtc_problem=nvrtc[1],
        )
    )


@functools.cache
def kernel_launcher() -> KernelLauncher | None:
    """Return what native launches go through; None for the kernels that were compiled in.

    Raises:
        TokenFabricError: there are no kernels here, with what to install.
    """
    backend = kernel_backend()
    if backend.way == "none":
        raise TokenFabricError(backend.reason)
    if backend.way == "compiled":
        return None
    compiler = KernelCompiler(_nvrtc(), KernelStore(env.cache_dir() / "cuda_kernels"))
    return KernelLauncher(
        compiler, load_kernel, _current_gpu, torch.cuda.is_current_stream_capturing
    )


def _about_cupy() -> tuple[str, str]:
    """Return version and problem, of which one is empty."""
    try:
        return str(import_module("cupy").__version__), ""
    except ModuleNotFoundError as error:
        return "", f"{'CuPy' if error.name == 'cupy' else error.name} is not installed"
    except Exception as error:
        return "", f"CuPy does not import: {type(error).__name__}: {error}"


def _about_nvrtc() -> tuple[str, str]:
    try:
        return ".".join(map(str, _nvrtc().version)), ""
    except TokenFabricError as error:
        return "", str(error)


def _nvrtc() -> Nvrtc:
    cuda = torch.version.cuda
    return load_nvrtc(None if cuda is None else int(cuda.partition(".")[0]))


def _current_gpu() -> tuple[int, tuple[int, int]]:
    device = torch.cuda.current_device()
    return device, torch.cuda.get_device_capability(device)
