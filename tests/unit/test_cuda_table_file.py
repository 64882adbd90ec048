"""Tables of measured GPU reductions on disk: what is written is read, what is wrong is named."""

import json
from pathlib import Path

import pytest

from tokenfabric.errors import ConfigError
from tokenweave.cuda.table_file import Provenance, TableFile, TimeEntry, read_table, write_table

ENTRY = {
    "algorithm": "two_shot", "reach": "peer", "world_size": 2, "num_blocks": 4,
    "num_bytes": 4096, "microseconds": 9.5,
}  # fmt: skip
PROVENANCE = {
    "gpu": "NVIDIA H200", "driver": "580.1", "torch": "2.13.0", "commit": "abc",
    "date": "2026-11-24", "rung": "made up for a test",
}  # fmt: skip


def test_table_survives_the_file(tmp_path: Path) -> None:
    """Times and provenance come back, and the planner's table has them."""
    table = TableFile(provenance=Provenance(**PROVENANCE), times=(TimeEntry(**ENTRY),))
    path = tmp_path / "new" / "table.json"
    write_table(path, table)
    assert read_table(path) == table
    assert read_table(path).table().best("two_shot", "peer", 2, 4096, 16) == (4, 9.5)


WRONG = [
    ({"times": [ENTRY | {"num_blocks": 0}]}, "times.0.num_blocks"),
    ({"times": [ENTRY | {"microseconds": -1}]}, "times.0.microseconds"),
    ({"times": [ENTRY | {"algorithm": "ring"}]}, "times.0.algorithm"),
    ({"times": [ENTRY, ENTRY | {"microseconds": 1}]}, "two times for"),
    ({"times": [ENTRY], "schema_version": 2}, "schema_version"),
    ({"times": [ENTRY], "provenance": PROVENANCE | {"gpu": ""}}, "provenance.gpu"),
    ({"times": [ENTRY], "note": ""}, "note"),
    ({}, "times"),
]


@pytest.mark.parametrize(("content", "named"), WRONG)
def test_wrong_table_is_refused_by_name(
    tmp_path: Path, content: dict[str, object], named: str
) -> None:
    """The error says which field of which file."""
    path = tmp_path / "table.json"
    path.write_text(json.dumps({"provenance": PROVENANCE} | content))
    with pytest.raises(ConfigError, match=named):
        read_table(path)


def test_missing_and_broken_files_are_refused(tmp_path: Path) -> None:
    """Neither is a traceback of somebody else's library."""
    with pytest.raises(ConfigError, match="cannot be read"):
        read_table(tmp_path / "nothing.json")
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(ConfigError, match="no table of measured times"):
        read_table(tmp_path / "broken.json")
