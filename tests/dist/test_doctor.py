"""`tokenfabric doctor` as users run it, on this machine and on one with broken packages."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.house.tree import ROOT
from tokenfabric import native

BASIC = "CPU ranks over shared memory"


def run(*args: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command to its end."""
    return subprocess.run(
        [sys.executable, "-m", "launch", "doctor", *args],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )


def paths(answer: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the paths of a JSON answer by name."""
    return {path["name"]: path for path in answer["paths"]}


def test_tables_for_people() -> None:
    """What is here, and what runs; exit code 0 where the tests of ranks run."""
    done = run()
    assert done.returncode == 0, done.stdout + done.stderr
    for words in ("This machine", "What runs here", BASIC, "taken", "multimem", "Ray", "compiler"):
        assert words in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


def test_json_for_programs() -> None:
    """One object and nothing else on stdout, and it is true of this machine."""
    done = run("--json")
    assert done.returncode == 0, done.stdout + done.stderr
    answer = json.loads(done.stdout)
    assert answer.keys() == {"schema", "is_well", "machine", "paths", "hints", "failed_probes"}
    assert (answer["schema"], answer["is_well"], answer["failed_probes"]) == (1, True, [])
    assert answer["machine"]["native"]["row_kernels"] == native.weave.usable_row_kernels()
    assert answer["machine"]["cpu"]["usable_cores"] == sorted(os.sched_getaffinity(0))
    assert paths(answer)[BASIC]["runs"]


def test_broken_machine(tmp_path: Path) -> None:
    """Half a torch, no native module: exit code 1, reasons instead of tracebacks."""
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("__version__ = '2.13.0'\n")
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['tokenfabric._C'] = None\n")
    done = run("--json", PYTHONPATH=str(tmp_path))
    assert done.returncode == 1, done.stdout + done.stderr
    assert done.stderr == ""
    answer = json.loads(done.stdout)
    why = paths(answer)[BASIC]["why"]
    assert "torch: does not work: AttributeError: module 'torch' has no attribute 'version'" in why
    assert "the native module tokenfabric._C is not built for this Python" in why
    assert paths(answer)["several hosts"]["runs"] is False


def test_wrong_instruction_set() -> None:
    """What would stop every rank is found before one is started."""
    done = run("--json", TOKENFABRIC_ISA="avx1024")
    assert done.returncode == 1, done.stderr
    path = paths(json.loads(done.stdout))[BASIC]
    assert "TOKENFABRIC_ISA=avx1024 cannot run here; usable: " in path["why"]
    assert path["advice"]
