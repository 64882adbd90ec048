"""The programs that building the native module needs."""

import shutil
import subprocess
import sysconfig

from launch.doctor.machine import Tool
from tokenfabric import env

_TIMEOUT_S = 60.0
# What csrc/ uses of the language and its library.
_CPP20 = """
#include <atomic>
#include <concepts>
#include <span>
#include <string>
struct Options { int rank; int size; };
template <std::integral T> T twice(T value) { return value + value; }
int main() {
    int word = twice(0);
    const Options options{.rank = 0, .size = 1};
    std::atomic_ref<int>(word).store(options.rank, std::memory_order_release);
    return std::string("0::").starts_with("0") ? std::span<int>(&word, 1)[0] : options.size;
}
"""


def find_compiler() -> Tool:
    """Return the C++ compiler that a build would take, tried on a C++20 program."""
    name = env.cxx()
    path = shutil.which(name)
    if path is None:
        return Tool(name=name, path=None, version=None, problem=f"{name} was not found")
    run = _run([path, "-std=c++20", "-fsyntax-only", "-x", "c++", "-"], _CPP20)
    problem = None
    if run.returncode != 0:
        first = next(iter(run.stderr.strip().splitlines()), "no message")
        problem = f"does not compile C++20: {first}"
    return Tool(name=name, path=path, version=_version(path), problem=problem)


def find_cmake() -> Tool:
    """Return the cmake on PATH, or the one that pip put beside this interpreter."""
    path = shutil.which("cmake") or shutil.which("cmake", path=sysconfig.get_path("scripts"))
    if path is None:
        return Tool(name="cmake", path=None, version=None, problem="cmake was not found")
    return Tool(name="cmake", path=path, version=_version(path), problem=None)


def _version(path: str) -> str:
    lines = _run([path, "--version"]).stdout.strip().splitlines()
    return lines[0] if lines else "unknown version"


def _run(command: list[str], text: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, input=text, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
    )
