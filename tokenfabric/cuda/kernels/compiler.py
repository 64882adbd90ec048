"""From a kernel that a launch names to code for one kind of GPU: kept on disk, or compiled now."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from tokenfabric.cuda.kernels.library import Compiled, Nvrtc
from tokenfabric.cuda.kernels.sources import digest, include_folders, source_root
from tokenfabric.cuda.kernels.store import KernelStore
from tokenfabric.errors import TopologyError
from tokenfabric.log import LOGGER_NAME

if TYPE_CHECKING:
    from tokenfabric import native

_STANDARD = "--std=c++20"
# With instructions of their own, as in CMakeLists.txt.
_SPECIFIC = ((9, 0), (10, 0))

_log = logging.getLogger(LOGGER_NAME)


def architecture_of(compute_capability: tuple[int, int]) -> str:
    """Return what code for a GPU is called: sm_80, sm_90a."""
    major, minor = compute_capability
    return f"sm_{major}{minor}{'a' if compute_capability in _SPECIFIC else ''}"


class KernelCompiler:
    """Compiles kernels with one NVRTC and keeps them in one folder."""

    def __init__(self, nvrtc: Nvrtc, store: KernelStore, root: Path | None = None) -> None:
        """Take the parts.

        Args:
            nvrtc: the compiler.
            store: where code is kept.
            root: of the sources; None for those of this install.
        """
        self.nvrtc, self.store = nvrtc, store
        self.root = source_root() if root is None else root

    def load(
        self, source: "native.cuda.KernelSource", compute_capability: tuple[int, int]
    ) -> tuple[str, bytes]:
        """Return symbol and code of a kernel for a GPU; compiled only where it is not kept yet.

        Raises:
            TopologyError, ConfigError: see `check`.
            TokenFabricError: the sources do not compile.
        """
        self.check(compute_capability)
        architecture = architecture_of(compute_capability)
        key = self.key(source, architecture)
        kept = self.store.read(key)
        if kept is not None:
            return kept
        _log.info(
            "compiling %s for %s with NVRTC %s, once on this machine: it takes seconds, and is "
            "kept in %s",
            source.kernel, architecture, self._version, self.store.folder,
        )  # fmt: skip
        compiled = self.compile(source, architecture)
        self.store.write(key, compiled.symbol, compiled.cubin)
        return compiled.symbol, compiled.cubin

    def check(self, compute_capability: tuple[int, int]) -> None:
        """See that kernels can be compiled for a GPU and kept.

        Raises:
            TopologyError: this NVRTC does not know the GPU.
            ConfigError: others can write to the folder.
        """
        self.store.check()
        major, minor = compute_capability
        if 10 * major + minor not in self.nvrtc.architectures():
            raise TopologyError(
                f"NVRTC {self._version} does not compile for compute capability {major}.{minor}: "
                "install a newer nvidia-cuda-nvrtc"
            )

    def compile(self, source: "native.cuda.KernelSource", architecture: str) -> Compiled:
        """Compile a kernel for an architecture, whatever is kept."""
        # If the compiler had another idea of the parameters, the GPU would read garbage.
        text = (
            f'#include "{source.file}"\n'
            f"static_assert(sizeof({source.params_type}) == {source.params_bytes}, "
            '"host and device disagree on the parameters");\n'
        )
        folders = [f"--include-path={folder}" for folder in include_folders(self.root)]
        options = [*self._options(source, architecture), *folders]
        # NVRTC takes a file of the unit's own name for the unit.
        return self.nvrtc.compile(text, "unit.cu", source.kernel, options)

    def key(self, source: "native.cuda.KernelSource", architecture: str) -> str:
        """Return everything that the code depends on, in words."""
        return "\n".join(
            (
                f"NVRTC {self._version}",
                *self._options(source, architecture),
                source.kernel,
                f"{source.params_type} {source.params_bytes}",
                digest(self.root, source.file),
            )
        )

    def _options(self, source: "native.cuda.KernelSource", architecture: str) -> tuple[str, ...]:
        return (_STANDARD, f"--gpu-architecture={architecture}", *source.options)

    @property
    def _version(self) -> str:
        return ".".join(map(str, self.nvrtc.version))
