"""`tokenfabric plan` and `tokenfabric trace`, without their terminal."""

import json
from pathlib import Path

import pytest

from launch.recipes.plan import PlanRequest, run_plan, run_trace
from launch.report import Table
from tests.unit.test_tuned_tables import entry
from tokenfabric.errors import ConfigError
from tokenweave.tuned_tables import MachineKey, write_tuned


class Heard:
    """A reporter that keeps what it is told."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.texts: list[str] = []
        self.tables: list[Table] = []

    def note(self, text: str) -> None:
        """Keep a note."""
        self.notes.append(text)

    def text(self, piece: str) -> None:
        """Keep a piece of the answer."""
        self.texts.append(piece)

    def table(self, table: Table) -> None:
        """Keep a table."""
        self.tables.append(table)


def request(**changes: object) -> PlanRequest:
    fields = {"model": "Llama-3.1-8B-Instruct", "gpu": "h100", "ranks": 8, "tokens": 4096}
    return PlanRequest(**(fields | changes))  # type: ignore[arg-type]


def test_plan_is_shown_and_explained() -> None:
    """The table has the choice and its times; the reasons and the sources come on request."""
    heard = Heard()
    run_plan(heard, request(), explain=True)
    shown = dict(heard.tables[0].rows)
    assert shown["plan"] == "split"
    assert shown["boundary"].endswith("of 4096 tokens")
    assert "waves" in "".join(heard.texts)
    assert any(note.startswith("link_bandwidth: ") for note in heard.notes)
    quiet = Heard()
    run_plan(quiet, request(tokens=1), explain=False)
    assert dict(quiet.tables[0].rows)["plan"] == "fused only"
    assert not quiet.texts


def test_measured_table_is_used_where_there_is_one(tmp_path: Path) -> None:
    """The entry of the GPU and of so many ranks; without one that is said, and never another."""
    path = tmp_path / "tables.json"
    key = MachineKey(processor="NVIDIA H100", world_size=8, threads=1, dtype="bf16")
    write_tuned(path, entry(key, "h100", link_bandwidth=1e15))
    heard, plain = Heard(), Heard()
    run_plan(heard, request(device_table=path), explain=True)
    assert "link_bandwidth: measured" in heard.notes
    assert "tuned" in heard.tables[0].title
    run_plan(plain, request(device_table=path, ranks=4), explain=False)
    assert "no table of h100 and 4 ranks" in plain.notes[0]
    assert "tuned" not in plain.tables[0].title
    write_tuned(path, entry(key.model_copy(update={"dtype": "fp32"}), "h100"))
    with pytest.raises(ConfigError, match="several tables"):
        run_plan(Heard(), request(device_table=path), explain=False)


def test_trace_is_written(tmp_path: Path) -> None:
    """The file holds every stage of the plan and how much of the communication is hidden."""
    heard, file = Heard(), tmp_path / "trace.json"
    run_trace(heard, request(), file)
    trace = json.loads(file.read_text())
    names = [event["name"] for event in trace["traceEvents"] if event["ph"] == "X"]
    assert "reduce layer 31 mlp tail" in names
    assert 0.9 < trace["otherData"]["overlap_ratio"] <= 1.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gpu": "h101"}, "h100"),
        ({"model": "nobody"}, "nobody"),
        ({"batch": 3}, "multiple"),
        ({"ranks": 33}, "query heads"),
    ],
)
def test_impossible_requests_are_refused(changes: dict[str, object], message: str) -> None:
    """One sentence says what is wrong."""
    with pytest.raises(ConfigError, match=message):
        run_plan(Heard(), request(**changes), explain=False)


def test_unwritable_file_is_refused(tmp_path: Path) -> None:
    """A folder that does not exist is named."""
    with pytest.raises(ConfigError, match="cannot write"):
        run_trace(Heard(), request(), tmp_path / "nowhere" / "trace.json")
