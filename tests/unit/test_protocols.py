"""Model-check protocols/*.pml with Spin: correct for few ranks, and each seeded bug is found.

The models are not generated from the C++: csrc/tests runs the real header under ThreadSanitizer.
"""

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

PROTOCOLS = Path(__file__).resolve().parents[2] / "protocols"

pytestmark = pytest.mark.skipif(
    shutil.which("spin") is None or shutil.which("gcc") is None,
    reason="Spin or gcc is not installed (Debian: apt-get install spin gcc)",
)


@dataclass(frozen=True)
class Case:
    """One model, its preprocessor definitions and what the checker must find ('' for nothing)."""

    model: str
    defines: tuple[str, ...]
    finding: str = ""

    def __str__(self) -> str:
        return "-".join((self.model, *self.defines))


# Counts start just below their maximum, so that they wrap (a byte stands for 32 bits).
CORRECT = [
    Case("one_shot", ("N=3", "BASE=254")),
    Case("two_shot", ("N=3", "BASE=253")),
    Case("mailbox", ("N=2",)),
    Case("mailbox", ("N=3", "BASE=254")),
    Case("sleep", ()),
    Case("give_up", ("N=3",)),
    Case("streams", ()),
    Case("streams", ("ONE_QUEUE", "MESSAGES=5")),
]

WRONG_DATA = "assertion violated"
DEADLOCK = "invalid end state"
SEEDED = [
    Case("one_shot", ("BUG_SINGLE_SLOT",), WRONG_DATA),
    Case("one_shot", ("BUG_NO_BARRIER",), WRONG_DATA),
    Case("one_shot", ("BUG_SIGNAL_RELAXED",), WRONG_DATA),
    Case("one_shot", ("BUG_WAIT_RELAXED",), WRONG_DATA),
    Case("one_shot", ("BUG_FROZEN_EPOCH",), WRONG_DATA),
    Case("one_shot", ("BUG_BASE_FROM_MEMORY",), WRONG_DATA),
    Case("one_shot", ("BUG_ONE_RECORD",), WRONG_DATA),
    Case("one_shot", ("BUG_PLAIN_COMPARE", "BASE=254"), WRONG_DATA),
    Case("two_shot", ("BUG_NO_ENTRY_BARRIER",), WRONG_DATA),
    Case("two_shot", ("BUG_NO_EXIT_BARRIER",), WRONG_DATA),
    Case("two_shot", ("BUG_SIGNAL_RELAXED",), WRONG_DATA),
    Case("two_shot", ("BUG_FROZEN_EPOCH",), WRONG_DATA),
    Case("mailbox", ("BUG_NO_CREDIT",), WRONG_DATA),
    Case("mailbox", ("BUG_PUBLISH_RELAXED",), WRONG_DATA),
    Case("mailbox", ("BUG_CREDIT_BEFORE_READ",), WRONG_DATA),
    Case("mailbox", ("BUG_ODD_SLOTS", "BASE=254"), WRONG_DATA),
    Case("mailbox", ("BUG_BASE_FROM_MEMORY",), DEADLOCK),
    Case("mailbox", ("BUG_RUN_AHEAD",), DEADLOCK),
    Case("give_up", ("BUG_NO_LATE_LOOK",), WRONG_DATA),
    Case("give_up", ("BUG_OWN_VERDICT_ONLY",), WRONG_DATA),
    Case("give_up", ("BUG_NO_DEADLINE",), DEADLOCK),
    Case("sleep", ("BUG_SIGNAL_RELEASE",), DEADLOCK),
    Case("sleep", ("BUG_SLEEPING_RELEASE",), DEADLOCK),
    Case("sleep", ("BUG_NO_FUTEX_COMPARE",), DEADLOCK),
    Case("sleep", ("BUG_WAKE_BEFORE_STORE",), DEADLOCK),
    Case("streams", ("BUG_NO_CREDIT",), WRONG_DATA),
    Case("streams", ("BUG_SIGNAL_RELAXED",), WRONG_DATA),
    Case("streams", ("BUG_GRANT_BEFORE_READ",), WRONG_DATA),
    Case("streams", ("BUG_GRANT_BEFORE_LEFT",), WRONG_DATA),
    Case("streams", ("BUG_PASS_ON_EARLY",), WRONG_DATA),
    Case("streams", ("ONE_QUEUE", "BUG_GRANT_LATE"), DEADLOCK),
]


def check(case: Case, folder: Path) -> str:
    """Return Spin's report on the exhaustive search of one model, stopped at the first error."""
    for source in PROTOCOLS.iterdir():
        shutil.copy(source, folder)
    defines = [f"-D{define}" for define in case.defines]
    steps = (
        ["spin", "-a", *defines, f"{case.model}.pml"],
        ["gcc", "-O0", "-w", "-DSAFETY", "-DMEMLIM=1024", "-o", "pan", "pan.c"],
        ["./pan", "-n", "-m100000"],
    )
    report = ""
    for step in steps:
        done = subprocess.run(step, cwd=folder, capture_output=True, text=True, timeout=60)
        report = done.stdout + done.stderr
        assert done.returncode == 0, report
    # An incomplete search proves nothing.
    assert "max search depth too small" not in report, report
    assert "out of memory" not in report, report
    return report


@pytest.mark.parametrize("case", CORRECT, ids=str)
def test_protocol_has_no_error_in_any_interleaving(case: Case, tmp_path: Path) -> None:
    """Every reachable state is visited; none reads wrong data and none is stuck."""
    report = check(case, tmp_path)
    assert "errors: 0" in report, report
    states = re.search(r"(\d+) states, stored", report)
    assert states is not None, report
    assert int(states.group(1)) > 500, "the model has become trivial"


@pytest.mark.parametrize("case", SEEDED, ids=str)
def test_seeded_bug_is_found(case: Case, tmp_path: Path) -> None:
    """A model that would pass with the bug in it proves nothing."""
    report = check(case, tmp_path)
    assert "errors: 1" in report, report
    assert case.finding in report, report


def test_every_seeded_bug_is_run() -> None:
    """A variant that a model offers and no case uses would rot."""
    offered = {
        (model.stem, bug)
        for model in PROTOCOLS.glob("*.pml")
        for bug in re.findall(r"#ifn?def (BUG_\w+)", model.read_text())
    }
    run = {(case.model, name) for case in SEEDED for name in case.defines if name[:4] == "BUG_"}
    shared = set(re.findall(r"#ifn?def (BUG_\w+)", (PROTOCOLS / "memory.inc").read_text()))
    assert offered <= run
    assert shared <= {name for _, name in run}
