"""Everything that a machine with one GPU can say about this library, within eight minutes.

    make gpu-check                                # builds for the GPU at hand, needs nvcc
    make gpu-check GPU_PYTHON=python3 COMMIT=...  # an interpreter with torch; commit of a copy

Builds the native module for this GPU, runs tests/gpu, compute-sanitizer's memcheck on some of them,
counts the kernel's bytes with Nsight Compute, and runs every benchmarks/bench_gpu_*.py. What is not
installed, or not allowed by the machine, is said and left out; a test or benchmark that fails makes
the check fail. Nothing is downloaded, no setting of the GPU is changed.
"""

import argparse
import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

from rich.console import Console

_REPOSITORY = Path(__file__).resolve().parents[1]
_RESULTS = _REPOSITORY / "benchmarks" / "results"
_ENVIRONMENT = {"PYTHONUNBUFFERED": "1"}
_TOTAL_S = 470.0
_SANITIZED = "rows_of_no_whole_vectors or gathered_rows or baseline_computes"
# Every kernel is in these, and compiled once.
_NVRTC_TESTS = tuple(
    f"tests/gpu/{name}.py"
    for name in ("test_virtual_fused", "test_virtual_quantized", "test_launches", "test_ring_merge")
)
# What one two-shot launch of eight ranks must move, and what is measured of it.
_METRICS = "dram__bytes_read.sum,dram__bytes_write.sum"


@dataclasses.dataclass(frozen=True)
class Step:
    """What became of one part of the check."""

    name: str
    outcome: str
    """passed, failed, or left out."""
    seconds: float
    detail: str


class Check:
    """Runs the steps one after the other and keeps what became of them."""

    def __init__(self, console: Console) -> None:
        self._console, self._deadline_s = console, time.monotonic() + _TOTAL_S
        self.steps: list[Step] = []

    def left_out(self, name: str, why: str) -> None:
        """Record a step that cannot be taken here."""
        self._add(Step(name, "left out", 0.0, why))

    def run(
        self, name: str, command: list[str], limit_s: float, refusals: str | None = None
    ) -> str | None:
        """Run a command; return its output if it succeeded.

        Args:
            limit_s: it is ended after this time, or at the end of the whole check.
            refusals: a pattern; output that has it says that the machine does not allow this.
        """
        left_s = self._deadline_s - time.monotonic()
        if left_s < 5.0:
            self._add(Step(name, "failed", 0.0, f"no time left of {_TOTAL_S:g} s"))
            return None
        self._console.rule(name)
        start_s = time.monotonic()
        try:
            run = subprocess.run(
                command, cwd=_REPOSITORY, env=os.environ | _ENVIRONMENT, text=True,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=min(limit_s, left_s),
                check=False,
            )  # fmt: skip
            output, code = run.stdout, run.returncode
        except subprocess.TimeoutExpired as error:
            said = error.stdout or b""
            output = said if isinstance(said, str) else said.decode(errors="replace")
            code = None
        taken_s = time.monotonic() - start_s
        self._console.print(output, markup=False, highlight=False, soft_wrap=True)
        last = next((line for line in reversed(output.splitlines()) if line.strip()), "")
        if code == 0:
            self._add(Step(name, "passed", taken_s, last))
            return output
        if refusals is not None and (found := re.search(refusals, output)):
            self._add(Step(name, "left out", taken_s, f"refused by this machine: {found[0]}"))
            return None
        why = f"exit {code}: {last}" if code is not None else f"ended after {taken_s:.0f} s"
        self._add(Step(name, "failed", taken_s, why))
        return None

    def _add(self, step: Step) -> None:
        self.steps.append(step)
        self._console.print(
            f"{step.name}: {step.outcome} ({step.seconds:.0f} s) {step.detail}",
            markup=False, highlight=False, soft_wrap=True,
        )  # fmt: skip

    @property
    def is_well(self) -> bool:
        """Whether no step failed."""
        return all(step.outcome != "failed" for step in self.steps)


def main() -> int:
    """Run the whole check, write its page and return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--commit", help="of the sources, where they are a copy without git")
    parser.add_argument("--no-build", action="store_true", help="use the native module as it is")
    options = parser.parse_args()
    console = Console(width=160)
    check = Check(console)
    capability = check.run("GPU", [sys.executable, "-c", _ASK_CAPABILITY], 60.0)
    if capability is None:
        return 1
    major, minor = capability.split()[-1].split(".")
    if not options.no_build and check.run("build", _build_command(major, minor), 240.0) is None:
        return 1
    _test(check)
    _count_bytes(check)
    for path in sorted((_REPOSITORY / "benchmarks").glob("bench_gpu_*.py")):
        command = [sys.executable, "-m", f"benchmarks.{path.stem}"]
        if options.commit:
            command += ["--commit", options.commit]
        check.run(path.stem, command, 150.0)
    _write(check, options.commit)
    return 0 if check.is_well else 1


_ASK_CAPABILITY = """
import torch
major, minor = torch.cuda.get_device_capability(0)
properties = torch.cuda.get_device_properties(0)
print(properties.name, torch.__version__, torch.version.cuda)
print(f"{major}.{minor}")
"""


def _build_command(major: str, minor: str) -> list[str]:
    """Return the command that builds the module for one kind of GPU, in a tree of its own."""
    # The kernels use what only the GPU itself has, from Hopper on.
    suffix = "a" if int(major) >= 9 else ""
    arguments = f"-DTOKEN_CUDA_ARCHITECTURES={major}{minor}{suffix}-real"
    return [
        "env", "TOKEN_CUDA=on", f"CMAKE_ARGS={arguments}",
        sys.executable, "setup.py", "-q", "build_ext", "--inplace",
    ]  # fmt: skip


def _test(check: Check) -> None:
    pytest = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
    check.run("tests/gpu", [*pytest, "tests/gpu"], 200.0)
    # The same sources by the other compiler; CuPy is what a machine may lack.
    if find_spec("cupy") is None:
        check.left_out("NVRTC", "CuPy is not installed")
    else:
        by_nvrtc = ["env", "TOKENFABRIC_CUDA_KERNELS=nvrtc", *pytest]
        check.run("NVRTC", [*by_nvrtc, *_NVRTC_TESTS], 100.0)
    sanitizer = shutil.which("compute-sanitizer")
    if sanitizer is None:
        check.left_out("memcheck", "compute-sanitizer is not installed")
        return
    check.run(
        "memcheck",
        [
            # Each tensor an allocation of its own: a write beyond it must not land in torch's pool.
            "env", "PYTORCH_NO_CUDA_MEMORY_CACHING=1",
            sanitizer, "--tool", "memcheck", "--error-exitcode", "9",
            *pytest, "tests/gpu/test_virtual_fused.py", "-k", _SANITIZED,
        ],
        90.0,
        refusals=r"Device not supported|Unable to find|not supported on this",
    )  # fmt: skip


def _count_bytes(check: Check) -> None:
    profiler = shutil.which("ncu")
    if profiler is None:
        check.left_out("bytes", "Nsight Compute (ncu) is not installed")
        return
    check.run(
        "bytes",
        [
            profiler, "--clock-control", "none", "--metrics", _METRICS, "--kernel-name",
            "regex:two_shot", "--launch-skip", "2", "--launch-count", "1", "--csv",
            sys.executable, "-m", "benchmarks.gpu_once",
        ],
        60.0,
        refusals=r"Failed to initialize the profiler|ERR_NVGPUCTRPERM|LibraryNotLoaded",
    )  # fmt: skip


def _write(check: Check, commit: str | None) -> None:
    """Write what became of the steps; the benchmarks wrote their own pages."""
    import torch

    from tokenfabric.testing.gpu_report import gpu_facts

    facts = gpu_facts(_REPOSITORY, torch.device("cuda", 0), commit)
    path = _RESULTS / f"gpu_check_{facts.machine}_{facts.date}.json"
    content = {
        "environment": dataclasses.asdict(facts),
        "steps": [dataclasses.asdict(step) for step in check.steps],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n")
    rows = [
        f"| {step.name} | {step.outcome} | {step.seconds:.0f} | {_cell(step.detail)} |"
        for step in check.steps
    ]
    head = ["| step | outcome | seconds | said |", "| --- | --- | --- | --- |"]
    page = [f"# GPU check\n\n{facts.describe('one GPU')}", "\n".join(head + rows)]
    path.with_suffix(".md").write_text("\n\n".join(page) + "\n")


def _cell(text: str) -> str:
    ascii_only = text.encode("ascii", "replace").decode()
    return ascii_only.replace("|", "/").strip()[:160]


if __name__ == "__main__":
    sys.exit(main())
