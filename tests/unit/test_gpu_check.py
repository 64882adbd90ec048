"""What `make gpu-check` does with what it finds; the steps themselves need a GPU."""

import io
import json
import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console

from benchmarks import bench_gpu_blocks, gpu_check
from benchmarks.bench_gpu_blocks import Rates
from benchmarks.gpu_check import Check
from benchmarks.gpu_virtual import Size
from tokenfabric.testing.bench_cell import Cell, Spread
from tokenfabric.testing.gpu_report import GpuFacts, write_gpu_results

FACTS = GpuFacts(
    gpu="NVIDIA H200 NVL", compute_capability="9.0", num_sms=132, memory_gib=139.8,
    driver="580.1", cuda="13.0", torch="2.11.0", python="3.12.3", commit="abc", date="2026-11-24",
)  # fmt: skip


@pytest.fixture
def check() -> Check:
    """Return a check that writes to nowhere."""
    return Check(Console(file=io.StringIO(), width=200))


def python(code: str) -> list[str]:
    """Return a command that runs some lines."""
    return [sys.executable, "-c", code]


def test_step_that_succeeds_is_passed_with_its_last_line(check: Check) -> None:
    """And its output is there for what follows."""
    assert (
        check.run("a", python("import sys; sys.stdout.write('one\\ntwo\\n')"), 30) == "one\ntwo\n"
    )
    assert [(it.name, it.outcome, it.detail) for it in check.steps] == [("a", "passed", "two")]
    assert check.is_well


def test_step_that_fails_makes_the_check_fail(check: Check) -> None:
    """Whatever comes after it."""
    assert check.run("a", python("import sys; sys.exit('broken')"), 30) is None
    assert check.run("b", python("pass"), 30) == ""
    assert [it.outcome for it in check.steps] == ["failed", "passed"]
    assert "exit 1: broken" in check.steps[0].detail
    assert not check.is_well


def test_tool_that_the_machine_refuses_is_left_out(check: Check) -> None:
    """Only where it says the words that mean so."""
    refused = python("import sys; sys.exit('Error: Device not supported')")
    assert check.run("a", refused, 30, refusals="Device not supported") is None
    check.left_out("b", "not installed")
    assert [it.outcome for it in check.steps] == ["left out", "left out"]
    assert check.is_well
    check.run("c", refused, 30, refusals="something else")
    assert not check.is_well


def test_step_that_hangs_is_ended(check: Check) -> None:
    """With what it said until then."""
    hangs = python(
        "import sys, time; sys.stdout.write('begun\\n'); sys.stdout.flush(); time.sleep(99)"
    )
    assert check.run("a", hangs, 1.0) is None
    assert check.steps[0].outcome == "failed"
    assert "ended after" in check.steps[0].detail


def test_check_ends_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step that would begin too late is not begun."""
    monkeypatch.setattr(gpu_check, "_TOTAL_S", 1.0)
    check = Check(Console(file=io.StringIO()))
    assert check.run("a", python("pass"), 30) is None
    assert "no time left" in check.steps[0].detail


@pytest.mark.parametrize(
    ("capability", "architecture"), [("8.0", "80"), ("8.9", "89"), ("9.0", "90a"), ("10.0", "100a")]
)
def test_build_is_for_the_gpu_at_hand(capability: str, architecture: str) -> None:
    """From Hopper on with what only that GPU has."""
    command = gpu_check._build_command(*capability.split("."))
    assert f"CMAKE_ARGS=-DTOKEN_CUDA_ARCHITECTURES={architecture}-real" in command
    assert "TOKEN_CUDA=on" in command


def test_what_is_sanitized_exists() -> None:
    """The names that memcheck selects are names of tests."""
    text = (Path(gpu_check._REPOSITORY) / "tests/gpu/test_virtual_fused.py").read_text()
    for words in gpu_check._SANITIZED.split(" or "):
        assert f"def test_{words}" in text


def test_what_runs_by_nvrtc_exists() -> None:
    """Files of tests/gpu."""
    root = Path(gpu_check._REPOSITORY)
    assert [it for it in gpu_check._NVRTC_TESTS if not (root / it).is_file()] == []


def test_bytes_are_counted_by_kernel() -> None:
    """Counting traffic gives 1.83, 1.50 and 1.28 for 2, 4 and 8 ranks."""
    sizes = [Size(ranks, 4096, 8192) for ranks in (2, 4, 8)]
    ratios = [size.unfused_bytes / size.fused_bytes for size in sizes]
    assert [round(it, 2) for it in ratios] == [1.83, 1.5, 1.28]
    assert Size(8, 16384, 8192).num_sets == 1
    assert Size(2, 1, 4096).num_sets == 4


def test_paced_ranks_ask_less_of_memory_than_it_gives() -> None:
    """The pace must be what limits the benchmark: 4.8 TB/s of an H200, not all of which is had."""
    size = bench_gpu_blocks._PACED_SIZE
    rates = Rates(size.ranks, {1: 20e9, 4: 45e9, 16: 50e9})
    assert rates.share(4) == 0.9
    assert rates.paced_limit == 90e9
    rows_a_second = rates.paced_limit * size.ranks / size.message_bytes
    assert rows_a_second * size.fused_bytes < 0.8 * 4.8e12


def test_results_name_gpu_and_date(tmp_path: Path) -> None:
    """One JSON and one page, with driver, torch and commit."""
    one = Spread(median=1.0, p25=1.0, p75=1.0, min=1.0, max=1.0)
    cell = Cell(
        labels={"tokens": 1}, baseline="a", num_rounds=9, seconds={"a": one}, speedup={},
        baseline_again=one,
    )  # fmt: skip
    path = write_gpu_results(
        tmp_path / "new", "gpu_blocks", FACTS, [cell], ["# Title", FACTS.describe("L3")], rung="L3"
    )
    assert path.name == "gpu_blocks_h200-nvl_2026-11-24.json"
    content = json.loads(path.read_text())
    assert content["environment"]["driver"] == "580.1"
    assert content["cells"][0]["labels"] == {"tokens": 1}
    page = path.with_suffix(".md").read_text()
    assert all(it in page for it in ("580.1", "2.11.0", "abc", "H200"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
def test_without_a_gpu_the_first_step_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is built, and the exit status is not zero."""
    monkeypatch.setattr(sys, "argv", ["gpu_check"])
    assert gpu_check.main() == 1
    assert "GPU: failed" in capsys.readouterr().out
