"""Compiled kernels on disk: found again, never half written, never taken for another."""

import logging
import multiprocessing
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.unit.nvrtc_kernels import compiler, find_nvrtc
from tokenfabric.cuda.kernels.sources import closure, digest, source_root
from tokenfabric.cuda.kernels.store import KernelStore
from tokenfabric.errors import ConfigError, TokenFabricError, TopologyError

with_nvrtc = pytest.mark.skipif(find_nvrtc() is None, reason="NVRTC is not installed")
CODE = bytes(range(256)) * 999


def test_what_was_written_is_read(tmp_path: Path) -> None:
    """By its key only; the folder is made, for this user alone."""
    store = KernelStore(tmp_path / "a" / "b")
    assert store.read("key") is None
    store.write("key", "_Zkernel", CODE)
    assert store.read("key") == ("_Zkernel", CODE)
    assert store.read("other") is None
    assert store.folder.stat().st_mode & 0o777 == 0o700
    assert [it.name for it in store.folder.iterdir()] == [store.path("key").name]


@pytest.mark.parametrize("damage", ["empty", "short", "changed", "other"])
def test_damaged_file_is_not_taken(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The kernel is compiled again, the log says so, and the new file is good."""
    store = KernelStore(tmp_path / "kept")
    store.write("key", "symbol", CODE)
    path = store.path("key")
    content = path.read_bytes()
    changed = content[:500] + bytes([content[500] ^ 1]) + content[501:]
    path.write_bytes(
        {"empty": b"", "short": content[:-1], "changed": changed, "other": b"#!" + content}[damage]
    )
    with caplog.at_level(logging.WARNING, "tokenfabric"):
        assert store.read("key") is None
    assert "is damaged" in caplog.text
    store.write("key", "symbol", CODE)
    assert store.read("key") == ("symbol", CODE)


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o777])
def test_folder_that_others_can_write_to_is_refused(tmp_path: Path, mode: int) -> None:
    """What lies there would run on the GPU."""
    store = KernelStore(tmp_path / "kept")
    store.write("key", "symbol", CODE)
    store.folder.chmod(mode)
    for use in (lambda: store.read("key"), lambda: store.write("key", "symbol", CODE)):
        with pytest.raises(ConfigError, match=r"kept.* nobody else may write.*CACHE_DIR"):
            use()


def test_full_or_missing_disk_is_said_and_does_not_stop(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Without a place each process compiles for itself."""
    (tmp_path / "file").write_text("")
    store = KernelStore(tmp_path / "file" / "kept")
    with caplog.at_level(logging.WARNING, "tokenfabric"):
        store.write("key", "symbol", CODE)
        assert store.read("key") is None
    assert "cannot be kept in" in caplog.text


def _write_often(folder: Path, start: "multiprocessing.synchronize.Event") -> None:
    store = KernelStore(folder)
    start.wait(30)
    for _ in range(30):
        store.write("key", "symbol", CODE)


def test_concurrent_writers_leave_one_whole_file(tmp_path: Path) -> None:
    """Readers meanwhile see all of it or nothing."""
    context = multiprocessing.get_context("fork")
    start = context.Event()
    writers = [context.Process(target=_write_often, args=(tmp_path, start)) for _ in range(3)]
    tmp_path.chmod(0o700)
    for writer in writers:
        writer.start()
    start.set()
    store, seen = KernelStore(tmp_path), 0
    while any(writer.is_alive() for writer in writers):
        found = store.read("key")
        seen += found is not None
        assert found in (None, ("symbol", CODE))
    for writer in writers:
        writer.join(30)
        assert writer.exitcode == 0
    assert seen
    assert os.listdir(tmp_path) == [store.path("key").name]


@dataclass(frozen=True)
class Source:
    """A kernel of a test, as the native module names its own."""

    kernel: str = "test::scale<2>"
    file: str = "test/scale.cuh"
    params_type: str = "test::Params"
    params_bytes: int = 16
    options: tuple[str, ...] = ()


KERNEL = """#pragma once
#include "factor.hpp"
namespace test {
struct Params { float* values; int count; };
template <int kFactor> __global__ void scale(const __grid_constant__ Params params) {
    for (int i = threadIdx.x; i < params.count; i += blockDim.x) {
        params.values[i] *= kFactor * FACTOR;
    }
}
}
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return sources of one kernel and a header."""
    folder = tmp_path / "sources" / "test"
    folder.mkdir(parents=True)
    (folder / "scale.cuh").write_text(KERNEL)
    (folder / "factor.hpp").write_text("#define FACTOR 3\n")
    return folder.parent


@with_nvrtc
def test_kernel_is_compiled_once(
    tmp_path: Path, root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Announced on the log before it is; a second process finds it."""
    with caplog.at_level(logging.INFO, "tokenfabric"):
        first = compiler(tmp_path / "kept", root).load(Source(), (9, 0))
        again = compiler(tmp_path / "kept", root).load(Source(), (9, 0))
    assert first == again
    assert caplog.text.count("compiling test::scale<2> for sm_90a with NVRTC") == 1
    assert str(tmp_path / "kept") in caplog.text


@with_nvrtc
def test_whatever_the_code_depends_on_is_another_kernel(tmp_path: Path, root: Path) -> None:
    """A changed header, architecture, option or template argument."""
    made = compiler(tmp_path / "kept", root)
    keys = {made.key(Source(), "sm_90a"), made.key(Source(), "sm_80")}
    keys.add(made.key(Source(options=("--fmad=false",)), "sm_90a"))
    keys.add(made.key(Source(kernel="test::scale<3>"), "sm_90a"))
    (root / "test" / "factor.hpp").write_text("#define FACTOR 4\n")
    keys.add(made.key(Source(), "sm_90a"))
    assert len(keys) == 5
    # A file that the kernel does not include changes nothing.
    (root / "test" / "other.hpp").write_text("#define OTHER\n")
    assert made.key(Source(), "sm_90a") in keys
    stale = made.load(Source(), (8, 0))
    (root / "test" / "factor.hpp").write_text("#define FACTOR 5\n")
    assert made.load(Source(), (8, 0)) != stale


@with_nvrtc
def test_wrong_sources_and_gpus_are_refused(tmp_path: Path, root: Path) -> None:
    """With the compiler's words; a layout that differs from the host's is such an error."""
    made = compiler(tmp_path / "kept", root)
    with pytest.raises(TokenFabricError, match="host and device disagree on the parameters"):
        made.load(Source(params_bytes=24), (9, 0))
    with pytest.raises(TopologyError, match=r"capability 5\.2: install a newer nvidia-cuda"):
        made.load(Source(), (5, 2))
    (root / "test" / "factor.hpp").write_text("#define FACTOR undeclared\n")
    with pytest.raises(TokenFabricError, match=r'does not compile test::scale<2>.*"undeclared"'):
        made.load(Source(), (9, 0))
    (root / "test" / "factor.hpp").unlink()
    with pytest.raises(TokenFabricError, match=r"scale\.cuh includes factor\.hpp, which is not"):
        made.load(Source(), (9, 0))
    assert not (tmp_path / "kept").exists()


def test_sources_are_ours_alone(tmp_path: Path) -> None:
    """Device code includes no header of a standard library: NVRTC has none."""
    files = {
        path
        for file in ("weave/cuda/one_shot.cuh", "weave/cuda/gather.cuh", "ring/cuda/merge_lse.cuh")
        for path in closure(source_root(), file)
    }
    assert {path.name for path in files} >= {"two_shot.cuh", "multimem.hpp", "params.hpp"}
    foreign = {path.name for path in files if "#include <" in path.read_text()}
    assert foreign == {"int_types.hpp"}, "but for the one that has another branch for NVRTC"
    copy = shutil.copytree(source_root(), tmp_path / "elsewhere")
    assert digest(copy, "weave/cuda/gather.cuh") == digest(source_root(), "weave/cuda/gather.cuh")
