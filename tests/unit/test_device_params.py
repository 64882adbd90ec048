"""What a kernel is given, laid out alike by the compiler of the host and by NVRTC.

The host fills these structures; on the GPU they are read by code of another compiler.
"""

import re
import subprocess
from pathlib import Path

import pytest

from tests.unit.nvrtc_kernels import find_nvrtc
from tokenfabric import env, native
from tokenfabric.cuda.kernels.sources import include_folders, source_root

pytestmark = pytest.mark.skipif(find_nvrtc() is None, reason="NVRTC is not installed")
STRUCTS = {
    "weave": ("Region", "GroupParams", "ReductionParams", "GatherParams", "ArrivalLine",
              "BlockState", "ChannelMemory", "FailureRecord"),
    "ring": ("Strides", "PieceParams", "MergeTarget"),
}  # fmt: skip
HEADERS = '#include "weave/cuda/params.hpp"\n#include "ring/cuda/params.hpp"\n'
_MEMBER = re.compile(r"^\s+(?:alignas\(\d+\) )?[\w:*<> ]+?[ *](\w+)(?:\[\w+\])*;", re.MULTILINE)


def members(package: str) -> dict[str, list[str]]:
    """Return the members of each structure of a package, from its headers."""
    folder = source_root() / package / "cuda"
    text = "".join(path.read_text() for path in (folder / "params.hpp", folder / "channel.hpp")
                   if path.is_file())  # fmt: skip
    found = {}
    for name in STRUCTS[package]:
        body = re.search(rf"struct (?:alignas\(\d+\) )?{name} {{(.*?)^}};", text, re.S | re.M)
        assert body is not None, name
        found[name] = _MEMBER.findall(body[1])
        assert found[name], name
    return found


def expressions() -> list[str]:
    """Return what must have one value everywhere."""
    wanted = []
    for package in STRUCTS:
        for name, fields in members(package).items():
            full = f"token::{package}::cuda::{name}"
            wanted += [f"sizeof({full})", f"alignof({full})"]
            wanted += [f"__builtin_offsetof({full}, {field})" for field in fields]
    return wanted + [f"sizeof({it.params_type})" for it in native.cuda.kernel_sources()]


def host_values(wanted: list[str], folder: Path) -> list[int]:
    """Return the values that the C++ compiler of the host finds."""
    lines = "".join(f'std::printf("%zu\\n", size_t({it}));\n' for it in wanted)
    source = folder / "layout.cpp"
    source.write_text(f"#include <cstdio>\n#include <cstddef>\n{HEADERS}int main() {{\n{lines}}}\n")
    options = [f"-I{it}" for it in include_folders(source_root())]
    program = folder / "layout"
    subprocess.run([env.cxx(), "-std=c++20", *options, source, "-o", program], check=True)
    done = subprocess.run([program], check=True, capture_output=True, text=True)
    return [int(it) for it in done.stdout.split()]


def test_host_and_device_lay_parameters_out_alike(tmp_path: Path) -> None:
    """Every size, alignment and offset; and the sizes are those that the module fills."""
    wanted = expressions()
    assert len(wanted) > 90
    values = host_values(wanted, tmp_path)
    checks = "".join(
        f'static_assert({it} == {value}, "{it}");\n'
        for it, value in zip(wanted, values, strict=True)
    )
    nvrtc = find_nvrtc()
    assert nvrtc is not None
    options = ["--std=c++20", "--gpu-architecture=sm_90a"]
    options += [f"--include-path={it}" for it in include_folders(source_root())]
    unit = f"{HEADERS}{checks}__global__ void nothing() {{}}\n"
    assert nvrtc.compile(unit, "layout.cu", "nothing", options).symbol
    by_type = dict(zip(wanted, values, strict=True))
    for source in native.cuda.kernel_sources():
        assert by_type[f"sizeof({source.params_type})"] == source.params_bytes
