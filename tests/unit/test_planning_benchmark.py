"""The benchmark of planning plans, each time anew, and says what it took."""

import json
from pathlib import Path

import pytest

from benchmarks import bench_planning as bench


def test_every_size_is_planned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One row for each model and size; a model that is known takes some time as well."""
    options = ["bench", "--rounds", "1", "--pause-s", "0", "--directory", str(tmp_path)]
    monkeypatch.setattr("sys.argv", options)
    monkeypatch.setattr(bench, "_SIZES", (1, 2048))
    bench.main()
    (path,) = tmp_path.glob("*.json")
    rows = json.loads(path.read_text())["rows"]
    assert [row["tokens"] for row in rows] == [1, 2048] * 2
    assert all(min(row["seconds"].values()) > 0 for row in rows)
    assert len(path.with_suffix(".md").read_text().splitlines()) == 8 + len(rows)
