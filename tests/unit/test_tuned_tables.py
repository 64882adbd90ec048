"""Measured device tables: written, found by their very key, and missed aloud."""

import json
import logging
from pathlib import Path

import pytest

from tokenfabric.errors import ConfigError
from tokenweave.device_tables import load_device, table_of
from tokenweave.tuned_tables import (
    MachineKey,
    Provenance,
    TunedTable,
    read_tuned,
    tuned_device,
    write_tuned,
)

KEY = MachineKey(processor="a CPU (avx2)", world_size=2, threads=1, dtype="fp32")


def entry(key: MachineKey = KEY, base: str = "cpu", **values: float) -> TunedTable:
    """Return an entry that differs from its base in some numbers."""
    numbers = table_of(base)
    for name, value in values.items():
        numbers[name] = {"value": value, "source": "measured"}
    return TunedTable(
        key=key,
        base=base,
        provenance=Provenance(
            driver="6.1", torch="2.9", commit="abc", date="2026-11-30", rung="test", seconds=1.0
        ),
        numbers=numbers,
    )


def test_entries_are_found_by_their_key(tmp_path: Path) -> None:
    """One entry for each key; writing it again replaces it and leaves the others."""
    path = tmp_path / "folder" / "tables.json"
    write_tuned(path, entry(gemm_flops_per_sm=1e9))
    more = KEY.model_copy(update={"world_size": 4})
    write_tuned(path, entry(more, gemm_flops_per_sm=2e9))
    write_tuned(path, entry(gemm_flops_per_sm=3e9))
    assert len(read_tuned(path).tables) == 2
    found, other = tuned_device(path, KEY), tuned_device(path, more)
    assert found is not None
    assert other is not None
    assert (found.gemm_flops_per_sm, other.gemm_flops_per_sm) == (3e9, 2e9)
    assert found.memory_bandwidth == load_device("cpu").memory_bandwidth
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(
    "change", [{"world_size": 3}, {"threads": 2}, {"dtype": "bf16"}, {"processor": "a CPU"}]
)
def test_no_other_entry_is_taken_and_that_is_said_once(
    change: dict[str, object], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The nearest entry is as good as none; the log says what is missing, and not again."""
    path = tmp_path / "tables.json"
    write_tuned(path, entry())
    asked = KEY.model_copy(update=change)
    with caplog.at_level(logging.INFO):
        assert tuned_device(path, asked) is None
        assert tuned_device(path, asked) is None
    assert [str(asked) in message for message in caplog.messages] == [True]
    assert tuned_device(path, KEY) is not None


def test_a_file_that_is_not_there_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Without a file there is no table either."""
    with caplog.at_level(logging.INFO):
        assert tuned_device(tmp_path / "none.json", KEY) is None
        assert tuned_device(tmp_path / "none.json", KEY) is None
    assert len(caplog.messages) == 1


@pytest.mark.parametrize("text", ["", "[]", '{"tables": [{}]}', '{"schema_version": 2}'])
def test_other_files_are_refused(text: str, tmp_path: Path) -> None:
    """What is no file of tables is not overwritten either."""
    path = tmp_path / "tables.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match="holds no device tables"):
        tuned_device(path, KEY)
    with pytest.raises(ConfigError, match="holds no device tables"):
        write_tuned(path, entry())
    assert path.read_text() == text


def test_incomplete_numbers_are_refused(tmp_path: Path) -> None:
    """A number without its source, or one too few, makes no table."""
    path = tmp_path / "tables.json"
    write_tuned(path, entry())
    content = json.loads(path.read_text())
    del content["tables"][0]["numbers"]["join_s"]["source"]
    path.write_text(json.dumps(content))
    with pytest.raises(ConfigError, match="join_s"):
        read_tuned(path)
