"""The wheel of a build without nvcc: it holds the sources of its kernels, and compiles them without
the repository.
"""

import os
import shutil
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.house.tree import PACKAGES, ROOT
from tests.unit.fake_drivers import COPIES, CUDA, compile_library
from tests.unit.nvrtc_kernels import find_nvrtc
from tokenfabric import native
from tokenfabric.cuda.kernels.sources import closure, source_root

pytestmark = pytest.mark.timeout(600)
# The compiler's effort is not what is tested here.
_FAST = "-DCMAKE_CXX_FLAGS_RELEASE=-O0"
_USE = """
from pathlib import Path
from tokenfabric import native
from tokenfabric.cuda.kernels.compiler import KernelCompiler
from tokenfabric.cuda.kernels.library import load_nvrtc
from tokenfabric.cuda.kernels.sources import source_root
from tokenfabric.cuda.kernels.store import KernelStore
import sys

folder = Path(sys.argv[1])
assert Path(native.__file__).is_relative_to(folder), native.__file__
assert source_root() == folder / "tokenfabric" / "csrc"
assert not native.cuda.runtime().is_compiled
asked = []
pieces = [native.ring.MergePiece(out=64, out_strides=(0, 0, 0), dtype=0, lse=64,
          lse_strides=(0, 0, 0), row_start=0, num_rows=1, head_start=0, num_heads=1)]
native.ring.merge_lse_cuda(pieces=pieces, sinks=0, out=128, out_strides=(0, 0, 0), out_dtype=0,
    lse=256, lse_strides=(0, 0, 0), batch=1, rows=1, heads=1, head_dim=8, stream=0, num_blocks=0,
    launcher=asked.append)
if sys.argv[2] == "nvrtc":
    compiler = KernelCompiler(load_nvrtc(None), KernelStore(folder / "kept"))
    symbol, code = compiler.load(asked[0].source, (9, 0))
    assert symbol.encode() in code
"""

_COPY = """
import ctypes
from tokenfabric import native
from tokenfabric.errors import TokenFabricError

runtime = native.cuda.runtime()
assert (runtime.is_compiled, runtime.runtime_version) == (False, 0)
assert (runtime.driver_version, runtime.num_devices, runtime.problem) == (13010, 2, "")
source, target = ctypes.create_string_buffer(bytes(range(64)), 64), ctypes.create_string_buffer(64)
at, to = ctypes.addressof(source), ctypes.addressof(target)
native.cuda.copy(to, at, 64, 7)
assert target.raw == source.raw
ctypes.memset(to, 0, 64)
native.cuda.copy_rows(to, 8, at + 1, 16, 3, 4, 7)
rows = [target.raw[8 * row : 8 * row + 4] for row in range(4)]
assert rows == [bytes([16 * row + 1, 16 * row + 2, 16 * row + 3, 0]) for row in range(4)], rows
native.cuda.copy_rows(to, 8, at, 16, 3, 0, 99)
try:
    native.cuda.copy_rows(to, 8, at, 16, 3, 4, 8)
except TokenFabricError as error:
    assert "4 x 3 bytes could not be enqueued: CUDA_ERROR_NO_DEVICE" in str(error), error
else:
    raise AssertionError("a copy that CUDA refuses")
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build a wheel with TOKEN_CUDA=off from a copy of the repository."""
    folder = tmp_path_factory.mktemp("wheel")
    copy = folder / "repository"
    copy.mkdir()
    unwanted = shutil.ignore_patterns("__pycache__", "*.so", "tests")
    for name in (*PACKAGES, "csrc"):
        shutil.copytree(ROOT / name, copy / name, ignore=unwanted)
    for name in ("CMakeLists.txt", "LICENSE", "MANIFEST.in", "README.md", "pyproject.toml",
                 "setup.py"):  # fmt: skip
        shutil.copy2(ROOT / name, copy / name)
    command = [
        sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation",
        "--disable-pip-version-check", "-w", folder, copy,
    ]  # fmt: skip
    environment = os.environ | {"TOKEN_CUDA": "off", "CMAKE_ARGS": _FAST}
    # A group of its own: at the deadline the compilers must end with pip, which started them.
    build = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    )  # fmt: skip
    try:
        output, _ = build.communicate(timeout=500)
    finally:
        if build.poll() is None:
            os.killpg(build.pid, signal.SIGKILL)
            build.wait()
    assert build.returncode == 0, output
    (built,) = folder.glob("*.whl")
    return built


def test_wheel_holds_the_sources_of_its_kernels(wheel: Path) -> None:
    """All that any kernel includes, and nothing that only the module is built from."""
    names = set(zipfile.ZipFile(wheel).namelist())
    root = source_root()
    needed = {
        f"tokenfabric/csrc/{path.relative_to(root.resolve())}"
        for file in {source.file for source in native.cuda.kernel_sources()}
        for path in closure(root, file)
    }
    assert len(needed) > 20
    assert needed - names == set()
    shipped = {name for name in names if name.startswith("tokenfabric/csrc/")}
    assert {Path(name).suffix for name in shipped} == {".hpp", ".cuh"}


def test_wheel_works_without_the_repository(wheel: Path, tmp_path: Path) -> None:
    """Its module describes launches, and its own files are what NVRTC compiles."""
    way = "none" if find_nvrtc() is None else "nvrtc"
    _run(wheel, tmp_path, _USE, str(tmp_path), way)


def test_copies_need_the_driver_alone(wheel: Path, tmp_path: Path) -> None:
    """Of a build without the CUDA runtime; here between addresses of a made-up driver."""
    compile_library(CUDA + COPIES, tmp_path / "libcuda.so.1")
    _run(wheel, tmp_path, _COPY)


def _run(wheel: Path, folder: Path, code: str, *arguments: str) -> None:
    """Run some lines over the wheel alone, with the libraries of a folder."""
    zipfile.ZipFile(wheel).extractall(folder)
    environment = os.environ | {"PYTHONPATH": str(folder), "LD_LIBRARY_PATH": str(folder)}
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], env=environment, cwd=folder,
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
