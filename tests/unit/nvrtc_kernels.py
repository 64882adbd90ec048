"""The CUDA kernels as NVRTC compiles them, without a GPU."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

from tokenfabric import native
from tokenfabric.cuda.kernels.compiler import KernelCompiler
from tokenfabric.cuda.kernels.library import Compiled, Nvrtc, load_nvrtc
from tokenfabric.cuda.kernels.store import KernelStore
from tokenfabric.errors import TokenFabricError


def find_nvrtc() -> Nvrtc | None:
    """Return the newest NVRTC that is installed; None without one."""
    try:
        return load_nvrtc(None)
    except TokenFabricError:
        return None


def compiler(folder: Path, root: Path | None = None) -> KernelCompiler:
    """Return a compiler that keeps its results in a folder."""
    nvrtc = find_nvrtc()
    assert nvrtc is not None, "pip install nvidia-cuda-nvrtc"
    return KernelCompiler(nvrtc, KernelStore(folder), root)


def source(kernel: str) -> "native.cuda.KernelSource":
    """Return the one kernel whose name, without namespaces, begins so."""
    found = [it for it in native.cuda.kernel_sources() if short(it.kernel).startswith(kernel)]
    assert len(found) == 1, f"{kernel}: {[it.kernel for it in found]}"
    return found[0]


def short(kernel: str) -> str:
    """Return the name of a kernel without namespaces."""
    for name in ("weave", "ring"):
        kernel = kernel.replace(f"token::{name}::cuda::", "")
    return kernel


def compile_for(architecture: str) -> dict[str, Compiled]:
    """Return every kernel for an architecture, by its name in the sources. Takes long."""
    made = compiler(Path("unused"))
    sources = native.cuda.kernel_sources()
    # NVRTC runs without Python's lock.
    with ThreadPoolExecutor(2) as pool:
        results = pool.map(lambda it: made.compile(it, f"sm_{architecture}"), sources)
        return {it.kernel: done for it, done in zip(sources, results, strict=True)}


def with_options(
    source: "native.cuda.KernelSource", options: tuple[str, ...]
) -> "native.cuda.KernelSource":
    """Return a kernel that is compiled with other options."""
    return SimpleNamespace(  # type: ignore[return-value]
        file=source.file, kernel=source.kernel, params_type=source.params_type,
        params_bytes=source.params_bytes, options=options,
    )  # fmt: skip
