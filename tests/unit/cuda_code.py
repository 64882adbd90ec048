"""What the compiler made of the CUDA kernels: the PTX and machine code that the build keeps."""

import re
import shutil
import subprocess
import sysconfig
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ARCHITECTURES = ("80", "90a", "100a")


def units() -> list[Path]:
    """Return the CUDA units of the module, as CMakeLists.txt lists them."""
    listed = re.findall(r"^\s+(csrc/\S+\.cu)$", (ROOT / "CMakeLists.txt").read_text(), re.MULTILINE)
    return sorted(ROOT / path for path in listed)


def older_than_sources(folder: Path) -> list[str]:
    """Return the units whose code in a folder is missing, or older than a file beside the unit."""
    stale = []
    for unit in units():
        made = [folder / f"{unit.stem}.compute_{each}.cubin" for each in ARCHITECTURES]
        newest = max(
            path.stat().st_mtime for path in unit.parent.iterdir() if path.suffix in (".cu", ".cuh")
        )
        if any(not path.is_file() or path.stat().st_mtime < newest for path in made):
            stale.append(str(unit.relative_to(ROOT)))
    return stale


@cache
def kept() -> Path | None:
    """Return the folder of a build that kept the code of all units as they are now, or None."""
    folders = sorted((ROOT / "build").glob("*/cuda_kept"))
    return next((folder for folder in folders if not older_than_sources(folder)), None)


def find_tool(name: str) -> Path | None:
    """Return a CUDA tool: on PATH, or from its package beside this interpreter."""
    on_path = shutil.which(name)
    if on_path is not None:
        return Path(on_path)
    packages = Path(sysconfig.get_path("purelib")) / "nvidia"
    return next(iter(sorted(packages.glob(f"*/bin/{name}"), reverse=True)), None)


def _cuobjdump(option: str, cubin: Path) -> str:
    tool, disassembler = find_tool("cuobjdump"), find_tool("nvdisasm")
    hint = "pip install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm"
    assert tool is not None, hint
    assert disassembler is not None, hint
    # cuobjdump looks for the disassembler on PATH.
    search = f"{disassembler.parent}:/usr/bin:/bin"
    done = subprocess.run(
        [tool, option, cubin], capture_output=True, text=True, env={"PATH": search}, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@dataclass(frozen=True)
class Usage:
    """What one kernel needs on one architecture."""

    registers: int
    stack_bytes: int
    local_bytes: int


def short_name(mangled: str) -> str:
    """Return a readable name: `two_shot<Peer, BFloat16, true>`."""
    done = subprocess.run(["c++filt", mangled], capture_output=True, text=True, check=True)
    name = re.sub(r"\(bool\)", "", done.stdout.strip())
    name = re.sub(r"\btoken::(\w+::)*", "", name.removeprefix("void "))
    return name.rpartition("(")[0] if name.endswith(")") else name


@cache
def usage(unit: str, architecture: str) -> dict[str, Usage]:
    """Return the usage of every kernel of a unit, by its mangled name."""
    folder = kept()
    assert folder is not None
    text = _cuobjdump("-res-usage", folder / f"{unit}.compute_{architecture}.cubin")
    found = re.findall(r"Function (\w+):\s+REG:(\d+) STACK:(\d+) \S+ LOCAL:(\d+)", text)
    return {name: Usage(int(reg), int(stack), int(local)) for name, reg, stack, local in found}


def machine_code(unit: str, architecture: str) -> set[str]:
    """Return the instructions that a unit uses, with their modifiers."""
    folder = kept()
    assert folder is not None
    text = _cuobjdump("-sass", folder / f"{unit}.compute_{architecture}.cubin")
    return set(re.findall(r"\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.a-z]*)", text))


def ptx_of_kernels(unit: str, architecture: str) -> dict[str, set[str]]:
    """Return the PTX instructions of every kernel of a unit, by its mangled name."""
    folder = kept()
    assert folder is not None
    return instructions((folder / f"{unit}.compute_{architecture}.ptx").read_text())


def instructions(text: str) -> dict[str, set[str]]:
    """Return the instructions of every kernel in a text of PTX, by its mangled name."""
    bodies = re.split(r"\.entry\s+(\w+)", text)[1:]
    return {
        name: set(re.findall(r"^\s*(?:@!?%\w+\s+)?([a-z][\w.:]*)", body, re.MULTILINE))
        for name, body in zip(bodies[::2], bodies[1::2], strict=True)
    }
