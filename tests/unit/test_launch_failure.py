"""Which rank's error a user is shown, and how much of it."""

from pathlib import Path

import pytest
import torch

from launch.failure import Failure, FailureKind, describe, read_failure, root_cause, write_failure
from tokenfabric.errors import (
    CommTimeoutError,
    ConfigError,
    MismatchError,
    PeerLostError,
    TokenFabricError,
    TopologyError,
)


def caught(error: Exception, rank: int | None = 1) -> Failure:
    """Return the description of an error that was really raised."""
    try:
        raise error
    except Exception as raised:
        return describe(raised, rank)


def failure(rank: int, kind: FailureKind, time_s: float) -> Failure:
    """Return a failure of which only place, kind and time matter."""
    return Failure(rank=rank, kind=kind, error="E", message="m", time_s=time_s)


@pytest.mark.parametrize(
    ("error", "kind", "exit_code"),
    [
        (ConfigError("no such model"), FailureKind.USER, 2),
        (TopologyError("two hosts"), FailureKind.USER, 2),
        (MemoryError(), FailureKind.USER, 2),
        (BrokenPipeError(), FailureKind.USER, 2),
        (TokenFabricError("the native module is not built"), FailureKind.USER, 2),
        (MismatchError("other shapes"), FailureKind.DEFECT, 1),
        (PeerLostError("rank 0 is gone"), FailureKind.CONSEQUENCE, 1),
        (CommTimeoutError("rank 0 is silent"), FailureKind.CONSEQUENCE, 1),
        (ValueError("oops"), FailureKind.DEFECT, 1),
    ],
)
def test_kind_follows_from_the_error(error: Exception, kind: FailureKind, exit_code: int) -> None:
    """A user's mistake, a lost peer and a defect are told apart."""
    described = caught(error)
    assert (described.kind, described.exit_code) == (kind, exit_code)


def test_allocation_that_fails_is_out_of_memory() -> None:
    """torch's own wording is recognised, and what it tried to allocate is kept."""
    with pytest.raises(RuntimeError) as raised:
        torch.empty(1 << 60)
    described = describe(raised.value, rank=0)
    assert described.kind is FailureKind.USER
    assert described.line.startswith("out of memory: you tried to allocate")


def test_users_mistake_is_one_line() -> None:
    """No rank, no class, no line break: only what to change."""
    assert caught(ConfigError("no such\n  model")).line == "no such model"


def test_defect_names_rank_and_error() -> None:
    """The traceback is in the details."""
    described = caught(KeyError("x"), rank=3)
    assert described.line == "rank 3 failed: KeyError: 'x'"
    assert "raise error" in described.details


def test_cause_is_the_earliest_that_is_no_consequence() -> None:
    """A survivor's PeerLostError never hides the error that it follows from."""
    lost = failure(0, FailureKind.CONSEQUENCE, 1.0)
    late, early = failure(1, FailureKind.DEFECT, 3.0), failure(2, FailureKind.USER, 2.0)
    assert root_cause([lost, late, early]) is early
    assert root_cause([failure(3, FailureKind.CONSEQUENCE, 2.0), lost]) is lost


def test_failure_travels_by_file(tmp_path: Path) -> None:
    """What is read is what was written; without a file there is no failure."""
    written, path = (
        caught(ValueError("caf\N{LATIN SMALL LETTER E WITH ACUTE}")),
        tmp_path / "f.json",
    )
    assert read_failure(path) is None
    write_failure(written, path)
    assert read_failure(path) == written
