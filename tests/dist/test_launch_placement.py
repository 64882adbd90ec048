"""Where the launcher puts ranks: on cores of their own, or it says why not."""

import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from typer.testing import CliRunner

from launch import torchrun
from launch.cli import app
from launch.failure import JobFailedError
from launch.job import JobSpec
from launch.torchrun import run_job
from tests.dist.tiny_checkpoint import write_checkpoint
from tests.house.tree import ROOT
from tokenfabric.cores import pin_process
from tokenfabric.errors import ConfigError, TopologyError

RECIPE = "tests.dist.launch_recipes:layout"


@pytest.fixture
def two_cores() -> Iterator[list[int]]:
    """Leave this process two cores, whatever the machine has; return them."""
    before = os.sched_getaffinity(0)
    if len(before) < 2:
        pytest.skip("needs two cores")
    chosen = sorted(before)[:2]
    pin_process(chosen)
    yield chosen
    pin_process(before)


def layout(ranks: int, **options: Any) -> list[Any]:
    """Return what the recipe of the same name returns."""
    result = run_job(JobSpec(recipe=RECIPE, ranks=ranks, timeout_s=30.0, **options))
    assert isinstance(result, list)
    return result


@pytest.mark.parametrize("pin", [None, True])
def test_two_ranks_have_a_core_each(two_cores: list[int], pin: bool | None) -> None:
    """With every thread of theirs, before and after the whole host was theirs for a while."""
    first, second = two_cores
    cores, torch_threads, world_threads, text = layout(2, pin=pin)
    assert cores == [[first], [second]]
    assert (torch_threads, world_threads) == (1, 1)
    assert f"1 a rank, cores {first} (no core is shared; every thread has a core)" in text
    assert "memory     of NUMA node" in text
    assert "advice" not in text


def test_pinning_can_be_declined(two_cores: list[int]) -> None:
    """Both ranks then have both cores, and describe() says what that means."""
    cores, torch_threads, _, text = layout(2, pin=False)
    assert cores[0] == cores[1]
    assert set(cores[0]) >= set(two_cores)
    assert torch_threads == 1
    assert "not pinned: ranks share cores" in text
    assert "advice     this rank may be moved to cores of local rank(s) 1" in text


@pytest.mark.parametrize(("ranks", "threads"), [(4, None), (2, 2)])
def test_too_few_cores_are_a_reason_not_to_pin(
    two_cores: list[int], ranks: int, threads: int | None
) -> None:
    """A demand to pin is refused before a rank starts."""
    cores, torch_threads, _, _ = layout(ranks, num_threads=threads)
    assert all(own == cores[0] and len(own) >= 2 for own in cores)
    assert torch_threads == (threads or 1)
    with pytest.raises(TopologyError, match=rf"--pin was asked for, but {ranks} ranks.* on 2 core"):
        layout(ranks, num_threads=threads, pin=True)


def test_asked_threads_win_over_the_environment(
    two_cores: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`--threads` before OMP_NUM_THREADS before one a core."""
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert layout(2, num_threads=1)[1] == 1
    assert os.environ["OMP_NUM_THREADS"] == "3"


def test_as_users_run_it(two_cores: list[int]) -> None:
    """Pinned below OMP_PROC_BIND, which would put second threads on the machine's second core; what
    was not asked for is told once, on stderr.
    """
    code = (
        "import os\nfrom launch.job import JobSpec\nfrom launch.torchrun import run_job\n"
        f"recipe = '{RECIPE}'\n"
        "cores = run_job(JobSpec(recipe=recipe, ranks=2))[0]\n"
        f"assert cores == {[[core] for core in two_cores]}, cores\n"
        "run_job(JobSpec(recipe=recipe, ranks=3))\n"
        "assert os.environ['OMP_PROC_BIND'] == 'close'"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, "OMP_PROC_BIND": "close"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("pinned") == 1, done.stderr
    assert "not pinned: 3 ranks on 2 core(s) take turns" in done.stderr


def test_ranks_of_torchrun_are_left_where_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asking to pin them is a mistake of the request."""
    for name, value in {
        "RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "localhost", "MASTER_PORT": "1",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match="torchrun started these ranks"):
        layout(2, pin=True)


@pytest.mark.parametrize(
    ("args", "threads", "pin"),
    [([], None, None), (["--threads", "3", "--no-pin"], 3, False), (["--pin"], None, True)],
)
def test_options_reach_the_job(
    args: list[str],
    threads: int | None,
    pin: bool | None,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """As the user wrote them."""
    specs: list[JobSpec] = []
    monkeypatch.setattr(torchrun, "run_job", lambda spec, place: specs.append(spec))
    folder = str(write_checkpoint(tmp_path_factory.mktemp("model") / "m"))
    done = CliRunner().invoke(app, ["generate", "--model", folder, "--prompt", "a", *args])
    assert done.exit_code == 0, done.output
    assert [(spec.num_threads, spec.pin) for spec in specs] == [(threads, pin)]


def test_core_that_vanished_is_named(two_cores: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """A rank that cannot have its cores ends the job, with the cores in the message."""
    plan = torchrun.plan_on_this_host(2)
    broken = type(plan)(
        cores_of_rank=((1023,), (two_cores[0],)), nodes_of_rank=((0,), (0,)), num_threads=1,
        reason="", notes=(),
    )  # fmt: skip
    monkeypatch.setattr(torchrun, "plan_on_this_host", lambda ranks, threads: broken)
    if 1023 in os.sched_getaffinity(0):
        pytest.skip("there is a core 1023")
    with pytest.raises(JobFailedError, match="cannot run on cores 1023"):
        layout(2)
