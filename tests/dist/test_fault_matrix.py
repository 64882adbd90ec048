"""A few of the kills of `make fault-matrix`, in each run of CI."""

from pathlib import Path

import pytest

from tests.faults.cases import CASES, IN_CI, Case
from tests.faults.runner import Bench, Outcome, run_case
from tests.faults.verdict import problems


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """Model, text, and the undisturbed run."""
    return Bench.make(tmp_path_factory.mktemp("bench"))


@pytest.mark.timeout(300)
@pytest.mark.parametrize("case", IN_CI, ids=str)
def test_a_disturbed_job_ends_as_it_must(case: Case, bench: Bench, tmp_path: Path) -> None:
    """Everybody knows in time, nothing is left; training goes on to the same loss."""
    if case.launcher == "ray":
        pytest.importorskip("ray")
    assert problems(case, run_case(case, bench)) == []


def test_a_wrong_outcome_is_noticed() -> None:
    """Each thing that must hold is looked at."""
    case = next(case for case in CASES if case.survives)
    right = {
        "knew_s": 0.1, "ended_s": 9.0, "code": 0, "said": "", "steps_lost": 2,
        "loss_difference": 1e-7, "unfinished": (), "left": (),
    }  # fmt: skip
    assert problems(case, Outcome(**right)) == []  # type: ignore[arg-type]
    for wrong in (
        {"left": ("1 python",)}, {"unfinished": ("step-2",)}, {"knew_s": 60.0}, {"code": 1},
        {"loss_difference": 1e-2}, {"steps_lost": 9},
    ):  # fmt: skip
        assert len(problems(case, Outcome(**{**right, **wrong}))) == 1  # type: ignore[arg-type]


def test_the_matrix_has_each_kill_once() -> None:
    """And CI's cases are some of them, by torchrun's ranks and by Ray's."""
    assert len(set(CASES)) == len(CASES)
    assert {case.launcher for case in IN_CI} == {"torchrun", "ray"}
    assert len(IN_CI) == 4
