"""Where kernels come from: the choice, and what is said where there are none."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tokenfabric import env
from tokenfabric.cuda.kernels import launcher
from tokenfabric.cuda.kernels.backend import BackendFacts, choose_backend
from tokenfabric.cuda.kernels.library import Nvrtc, candidates
from tokenfabric.errors import ConfigError, TokenFabricError

COMPILED = BackendFacts(is_compiled=True, torch_cuda="13.0")
BARE = replace(
    COMPILED, is_compiled=False, cupy_problem="CuPy is not installed", nvrtc_problem="no NVRTC"
)
READY = replace(COMPILED, is_compiled=False, cupy="14.2.0", nvrtc="13.1")


def test_compiled_kernels_come_first() -> None:
    """Whatever else is installed; NVRTC on request."""
    assert choose_backend(COMPILED).way == "compiled"
    both = replace(READY, is_compiled=True)
    assert choose_backend(both).way == "compiled"
    assert choose_backend(replace(both, asked="nvrtc")).way == "nvrtc"
    assert choose_backend(replace(both, asked="compiled")).way == "compiled"


def test_build_without_nvcc_takes_nvrtc_and_cupy() -> None:
    """The reason names both versions, for doctor and world.describe()."""
    choice = choose_backend(READY)
    assert choice.way == "nvrtc"
    assert all(it in choice.reason for it in ("NVRTC 13.1", "CuPy 14.2.0", "this build has none"))
    assert "asked for" in choose_backend(replace(READY, asked="nvrtc")).reason


REFUSED = {
    "bare": (BARE, r"no CUDA kernels.*\(CuPy is not installed; no NVRTC\): install "
                   r"tokenfabric\[cuda13\], or build it where nvcc is, with TOKEN_CUDA=on"),
    "other CUDA": (replace(BARE, torch_cuda="12.8"), r"install tokenfabric\[cuda12\],"),
    "torch for CPUs": (replace(BARE, torch_cuda=None), r"\[cuda13\] or .*\[cuda12\], beside a"),
    "only NVRTC": (replace(BARE, nvrtc="13.1", nvrtc_problem=""), r"\(CuPy is not installed\):"),
    "asked": (replace(BARE, is_compiled=True, asked="nvrtc"),
              r"KERNELS=nvrtc, and CUDA kernels cannot be compiled here \(CuPy"),
    "not built": (replace(READY, asked="compiled"),
                  r"KERNELS=compiled, and this build has no CUDA kernels: .*unset the variable"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refusal_says_what_to_do(name: str) -> None:
    """What is missing, and the extra for torch's CUDA."""
    facts, words = REFUSED[name]
    choice = choose_backend(facts)
    assert choice.way == "none"
    with pytest.raises(AssertionError, match=words):
        raise AssertionError(choice.reason)


def test_variable_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A word that is none of the three is refused by name."""
    monkeypatch.setenv("TOKENFABRIC_CUDA_KERNELS", "nvcc")
    with pytest.raises(ConfigError, match="one of auto, compiled, nvrtc, got 'nvcc'"):
        env.cuda_kernels()
    monkeypatch.delenv("TOKENFABRIC_CUDA_KERNELS")
    assert env.cuda_kernels() == "auto"


@pytest.mark.parametrize("name", ["cupy", "cuda.pathfinder"])
def test_what_cupy_lacks_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    """A broken CuPy is no CuPy, and the reason is its own."""
    monkeypatch.setitem(sys.modules, "cupy", None)
    assert (
        launcher._about_cupy()[1].startswith("CuPy does not import")
        or "not installed" in (launcher._about_cupy()[1])
    )
    monkeypatch.delitem(sys.modules, "cupy")
    (tmp_path / "cupy.py").write_text(f"raise ModuleNotFoundError('no', name={name!r})\n")
    monkeypatch.syspath_prepend(tmp_path)
    wanted = "CuPy" if name == "cupy" else name
    assert launcher._about_cupy() == ("", f"{wanted} is not installed")


def test_nvrtc_is_looked_for_in_packages_first(tmp_path: Path) -> None:
    """That of torch's CUDA alone, where torch has one."""
    for name in ("cu13/lib/libnvrtc.so.13", "cuda_nvrtc/lib/libnvrtc.so.12"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text("")
    inside = [str(tmp_path / "cu13/lib/libnvrtc.so.13"), "libnvrtc.so.13"]
    older = [str(tmp_path / "cuda_nvrtc/lib/libnvrtc.so.12"), "libnvrtc.so.12"]
    assert list(candidates([tmp_path], 13)) == inside
    assert list(candidates([tmp_path], 12)) == older
    both = [inside[0], older[0], inside[1], older[1]]
    assert list(candidates([tmp_path], None)) == both
    assert list(candidates([], 14)) == ["libnvrtc.so.14"]


@pytest.mark.parametrize("path", ["libno_nvrtc.so.13", "libm.so.6"])
def test_library_that_is_none_is_refused(path: str) -> None:
    """By its name, whether it is missing or another one."""
    with pytest.raises(TokenFabricError, match=f"NVRTC does not load from {path}"):
        Nvrtc(path)
