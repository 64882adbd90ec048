"""A job on ranks of its own: where they stand, what is said when one fails, and that none stays."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from launch.failure import FailureKind, JobFailedError
from launch.job import JobSpec
from launch.torchrun import choose_ranks, run_job
from tests.house.tree import ROOT
from tokenfabric.errors import ConfigError
from tokenfabric.log import LOGGER_NAME

RECIPES = "tests.dist.launch_recipes"


def job(function: str, ranks: int = 2, **args: object) -> JobSpec:
    """Return a job of one of the test recipes."""
    return JobSpec(recipe=f"{RECIPES}:{function}", ranks=ranks, args=args, timeout_s=30.0)


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_result_is_rank_zeros(ranks: int) -> None:
    """Arguments arrive as they were given: the launcher expands nothing in them."""
    text = "costs $$5 ${local_rank} \N{SNOWMAN}"
    rank, size, num_threads, arrived = run_job(job("place", ranks, text=text))  # type: ignore[misc]
    assert (rank, size, arrived) == (0, ranks, text)
    assert num_threads >= 1


def test_users_threads_win(monkeypatch: pytest.MonkeyPatch) -> None:
    """OMP_NUM_THREADS is taken over, and the environment is left as it was."""
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    before = dict(os.environ)
    assert run_job(job("place", text=""))[2] == 3  # type: ignore[index]
    changed = {
        name for name in before.keys() | os.environ if before.get(name) != os.environ.get(name)
    }
    assert {name for name in changed if not name.startswith("TORCHELASTIC")} == set()


@pytest.mark.parametrize("how", ["kill", "defect"])
def test_a_job_that_goes_on_is_started_again(
    tmp_path: Path, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    """As often as was asked for, and each time it is said why."""
    spec = job("fail_at_first", folder=str(tmp_path), how=how, times=2)
    assert run_job(replace(spec, max_restarts=2)) == 2
    line = "SIGKILL: the process was killed" if how == "kill" else "ValueError: rank 1 cannot count"
    told = [record.message for record in caplog.records if record.name == LOGGER_NAME]
    assert len(told) == 2
    for left, message in zip((2, 1), told, strict=True):
        assert message.startswith(f"rank 1 failed: {line}")
        assert message.endswith(f"starting all ranks again, {left} more time(s) at most")


def test_what_only_ray_can_do_is_refused() -> None:
    for changes in ({"nodes": 2}, {"environment": {"A": "1"}}):
        with pytest.raises(ConfigError, match="are for Ray"):
            run_job(replace(job("place", text=""), **changes))  # type: ignore[arg-type]


def test_restarts_below_torchrun_are_torchruns(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "LOCAL_RANK", "MASTER_PORT"):
        monkeypatch.setenv(name, "0")
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    with pytest.raises(ConfigError, match="give it --max-restarts"):
        run_job(replace(job("place", ranks=1, text=""), max_restarts=1))


@pytest.mark.parametrize(("how", "attempts"), [("kill", 2), ("user", 1)])
def test_restarts_end(tmp_path: Path, how: str, attempts: int) -> None:
    """When there are no more, or at once where the same request would fail again."""
    spec = job("fail_at_first", folder=str(tmp_path), how=how, times=9)
    with pytest.raises(JobFailedError):
        run_job(replace(spec, max_restarts=1))
    assert len(list(tmp_path.iterdir())) == attempts


@pytest.mark.parametrize(
    ("how", "kind", "line"),
    [
        ("defect", FailureKind.DEFECT, "rank 1 failed: ValueError: rank 1 cannot count"),
        ("user", FailureKind.USER, "take fewer ranks"),
        ("exit", FailureKind.DEFECT, "rank 1 failed: SystemExit: 3"),
        ("kill", FailureKind.DEFECT, "rank 1 failed: SIGKILL: the process was killed"),
    ],
)
def test_first_failing_ranks_own_error_is_shown(
    how: str, kind: FailureKind, line: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """Rank 0 loses rank 1 at the same moment; its PeerLostError is not what the user needs."""
    with pytest.raises(JobFailedError) as raised:
        run_job(job("fail_on_rank_one", how=how))
    failure = raised.value.failure
    assert (failure.kind, failure.rank) == (kind, 1)
    assert failure.line.startswith(line)
    assert "launcher" not in capfd.readouterr().err
    if how == "kill":
        assert failure.details == "last words"


def test_threads_must_be_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """A typing error is found before a rank starts."""
    monkeypatch.setenv("OMP_NUM_THREADS", "two")
    with pytest.raises(ConfigError, match="OMP_NUM_THREADS must be a number above 0, got 'two'"):
        run_job(job("place", text=""))


def test_recipe_that_does_not_exist() -> None:
    """The message names the module or the function."""
    for recipe, reason in (
        (f"{RECIPES}:nothing", "no function nothing"),
        ("no.where:f", "module no"),
    ):
        with pytest.raises(JobFailedError, match=reason) as raised:
            run_job(JobSpec(recipe=recipe, ranks=2))
        assert raised.value.failure.exit_code == 2


def test_number_of_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two by default; below torchrun its number, and no other."""
    assert choose_ranks(None) == 2
    assert choose_ranks(5) == 5
    for name, value in {
        "RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4",
        "MASTER_ADDR": "localhost", "MASTER_PORT": "1",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    assert choose_ranks(None) == choose_ranks(4) == 4
    with pytest.raises(ConfigError, match="--ranks 2 was asked for, but torchrun started 4"):
        choose_ranks(2)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_rank_outlives_its_launcher(number: signal.Signals, tmp_path: Path) -> None:
    """Told to stop or killed outright: the ranks are gone soon after."""
    code = (
        "from launch.job import JobSpec\nfrom launch.torchrun import run_job\n"
        f"run_job(JobSpec(recipe='{RECIPES}:sleep', ranks=2, args={{'folder': {str(tmp_path)!r}}}))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.DEVNULL
    ) as launcher:
        pids = [_wait_for_pid(tmp_path / str(rank)) for rank in range(2)]
        launcher.send_signal(number)
        launcher.wait(timeout=20)
    deadline_s = time.monotonic() + 10
    while any(_is_running(pid) for pid in pids):
        assert time.monotonic() < deadline_s, f"of the ranks {pids} some still run"
        time.sleep(0.05)


def _wait_for_pid(path: Path) -> int:
    deadline_s = time.monotonic() + 60
    while not (path.is_file() and path.read_text()):
        assert time.monotonic() < deadline_s, "the rank did not start"
        time.sleep(0.05)
    return int(path.read_text())


def _is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"
