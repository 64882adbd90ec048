"""Build `tokenfabric._C` by driving CMake. Everything else is in pyproject.toml.

CMakeLists.txt is the only list of sources and flags; this file configures it, builds the target
`_C` and puts the module where setuptools wants it. Read from the environment:

    TOKEN_CUDA=auto|on|off   build the CUDA sources: if a compiler is found, always, never
    CMAKE_ARGS               further arguments for the configure step, separated by spaces

The build tree is kept in `build/`, so that a second install compiles only what changed.
"""

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pybind11
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py
from setuptools.errors import SetupError

ROOT = Path(__file__).resolve().parent
# What kernels are compiled from where the module has none (tokenfabric/cuda/kernels/sources.py).
DEVICE_SOURCES = ("include/token", "ring", "weave/cuda")


def find_tool(name: str) -> str | None:
    """Return the path of a program, looked for on PATH, then beside this interpreter."""
    scripts = sysconfig.get_path("scripts")
    return shutil.which(name) or shutil.which(name, path=scripts)


def cuda_mode() -> str:
    """Return the checked value of TOKEN_CUDA."""
    mode = os.environ.get("TOKEN_CUDA", "auto").lower()
    if mode not in ("auto", "on", "off"):
        raise SetupError(f"TOKEN_CUDA must be auto, on or off, got {mode!r}")
    return mode


class BuildWithSources(build_py):
    """Put the device sources into the package; an editable install finds them in csrc itself."""

    def run(self) -> None:
        super().run()
        for folder in () if self.editable_mode else DEVICE_SOURCES:
            target = Path(self.build_lib) / "tokenfabric" / "csrc" / folder
            unused = shutil.ignore_patterns("*.cpp", "*.cu")
            shutil.copytree(ROOT / "csrc" / folder, target, ignore=unused, dirs_exist_ok=True)


class CMakeBuild(build_ext):
    """Configure and build with CMake, then install the module that it produced."""

    def build_extension(self, ext: Extension) -> None:
        cmake, ninja = find_tool("cmake"), find_tool("ninja")
        if cmake is None:
            raise SetupError("cmake was not found: install it with `pip install cmake ninja`")
        # One tree per interpreter and generator: CMake refuses to change either in place.
        tree = ROOT / "build" / f"{sys.implementation.cache_tag}-{'ninja' if ninja else 'make'}"
        configure = [cmake, "-S", str(ROOT), "-B", str(tree)]
        # These paths live in a temporary environment when pip isolates the build. Naming them in
        # every call replaces what the cache of an earlier build remembers.
        if ninja:
            configure += ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"]
        configure += [
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-DCMAKE_BUILD_TYPE={'Debug' if self.debug else 'Release'}",
            f"-DTOKEN_CUDA={cuda_mode()}",
            *shlex.split(os.environ.get("CMAKE_ARGS", "")),
        ]
        jobs = os.environ.get("CMAKE_BUILD_PARALLEL_LEVEL") or str(os.cpu_count() or 1)
        subprocess.run(configure, check=True)
        subprocess.run(
            [cmake, "--build", str(tree), "--target", "_C", "--parallel", jobs], check=True
        )
        self.place(tree, Path(self.get_ext_fullpath(ext.name)))

    def place(self, tree: Path, target: Path) -> None:
        """Copy the built module to `target`, replacing an older one in a single step."""
        built = list(tree.rglob(target.name))
        if len(built) != 1:
            raise SetupError(f"expected one {target.name} below {tree}, found {len(built)}")
        target.parent.mkdir(parents=True, exist_ok=True)
        # A running process may have the old file mapped: never write into it.
        fresh = target.with_name(f"{target.name}.new")
        shutil.copy2(built[0], fresh)
        fresh.replace(target)


setup(
    ext_modules=[Extension("tokenfabric._C", sources=[])],
    cmdclass={"build_ext": CMakeBuild, "build_py": BuildWithSources},
)
