"""`tokenfabric bench`, up to the start of its ranks."""

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from launch import torchrun
from launch.cli import app
from launch.job import JobSpec
from tokenfabric.errors import ConfigError
from tokenweave.tuned_tables import default_path


def spec_of(*options: str, monkeypatch: pytest.MonkeyPatch) -> JobSpec:
    """Return the job that the command would run."""
    jobs: list[JobSpec] = []
    monkeypatch.setattr(torchrun, "run_job", jobs.append)
    result = CliRunner().invoke(app, ["bench", *options], catch_exceptions=False)
    assert result.exit_code == 0
    return jobs[0]


def test_results_are_kept_only_where_that_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without --tune nothing is written; with it, to the cache folder or the file that is named."""
    monkeypatch.setenv("TOKENFABRIC_CACHE_DIR", str(tmp_path))
    outputs: list[Any] = [
        spec_of(*options, monkeypatch=monkeypatch).args["output"]
        for options in ((), ("--tune",), ("--tune", "--output", str(tmp_path / "a.json")))
    ]
    assert outputs == [None, str(default_path()), str(tmp_path / "a.json")]
    assert default_path().parent == tmp_path


def test_a_file_without_tune_is_refused() -> None:
    """The message says which option is missing."""
    with pytest.raises(ConfigError, match="--tune"):
        CliRunner().invoke(app, ["bench", "--output", "a.json"], catch_exceptions=False)
