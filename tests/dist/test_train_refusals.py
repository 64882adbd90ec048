"""What cannot be trained: one line, exit code 2, and no process is left."""

import os
import socket
import subprocess
import sys
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.dist.train_jobs import options, write_job
from tests.house.tree import ROOT

RANK_0_OF_2 = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}
MARK = "TRAIN_REFUSALS_MARK"


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return write_job(tmp_path_factory.mktemp("train"))


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what is empty, in one way or another."""
    folder = tmp_path_factory.mktemp("empty")
    (folder / "empty.txt").touch()
    (folder / "blank.jsonl").write_text("\n\n")
    (folder / "folder").mkdir()
    return folder


def refuse(
    job: dict[str, Any], tmp_path: Path, wrong: tuple[str, ...], environment: Mapping[str, str]
) -> str:
    """Run the command, which must refuse; return its one line."""
    mark = uuid.uuid4().hex
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "launch",
            *options({**job, "output": str(tmp_path / "run")}),
            *wrong,
        ],
        cwd=ROOT,
        env={**os.environ, **environment, MARK: mark},
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert not (tmp_path / "run" / "checkpoints").exists()
    assert list(processes_with(mark)) == []
    return done.stderr


def processes_with(mark: str) -> Iterator[str]:
    """Yield the command lines of processes that inherited the mark."""
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            try:
                if mark.encode() in (folder / "environ").read_bytes():
                    yield (folder / "cmdline").read_text()
            except OSError:
                continue  # it has just ended


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (("--context", "1"), "context is 1"),
        (("--dp", "2", "--rows-per-step", "3"), "multiple of dp 2"),
        (("--nodes", "2"), "run this command on each of them"),
        (("--launcher", "ray", "--pin"), "--pin is for processes of this host"),
        (("--data", "/no/such/file"), "there is no such file or folder"),
        (("--data", "{empty}/empty.txt"), "the file is empty"),
        (("--data", "{empty}/folder"), "the folder has no files"),
        (("--model", "/no/such/model"), "/no/such/model"),
        (
            ("--launcher", "ray", "--address", "127.0.0.1:{closed}"),
            "no Ray cluster answers at 127.0.0.1:{closed}",
        ),
        (
            (
                "--nodes",
                "2",
                "--node-rank",
                "1",
                "--rendezvous",
                "127.0.0.1:{closed}",
                "--timeout-s",
                "3",
            ),
            "nobody answers at 127.0.0.1:{closed}",
        ),
    ],
)
def test_a_mistake_is_one_line(
    job: dict[str, Any], empty: Path, tmp_path: Path, wrong: tuple[str, ...], says: str
) -> None:
    """Said by the command itself: no rank was started."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # taken, but nobody listens
        found = {"empty": empty, "closed": closed.getsockname()[1]}
        said = refuse(job, tmp_path, tuple(word.format(**found) for word in wrong), {})
    assert says.format(**found) in said


def test_torchrun_must_start_the_mesh(job: dict[str, Any], tmp_path: Path) -> None:
    environment = {**RANK_0_OF_2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    said = refuse(job, tmp_path, ("--ring", "4"), environment)
    assert "dp 1 x ring 4 (4 ranks) was asked for, but torchrun started 2" in said


def test_a_taken_port_is_named(job: dict[str, Any], tmp_path: Path) -> None:
    """Below a launcher that gives rank 0 a port which another process listens on."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        environment = {**RANK_0_OF_2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        said = refuse(job, tmp_path, ("--ring", "2", "--timeout-s", "20"), environment)
    assert f"the ranks' meeting point at 127.0.0.1:{port}" in said
    assert "address already in use" in said


@pytest.mark.parametrize(
    ("data", "context", "says"),
    [
        (None, "100000", "longer than the"),
        ("blank.jsonl", "48", "the files have no documents"),
    ],
)
def test_what_ranks_find_is_one_line_too(
    job: dict[str, Any], empty: Path, tmp_path: Path, data: str | None, context: str, says: str
) -> None:
    """Of the ranks that were started, none is left."""
    job = job if data is None else {**job, "data": [str(empty / data)]}
    assert says in refuse(job, tmp_path, ("--context", context, "--ring", "2"), {})
