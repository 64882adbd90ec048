"""The executor's benchmark runs, checks what it times and measures every provider."""

from benchmarks import bench_executor as bench
from tokenfabric.testing.bench_report import markdown_table
from tokenfabric.testing.spawn import run_ranks

SMALL = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}


def test_the_dry_run_is_measured_split_and_not() -> None:
    """One row each, with the time of a stage."""
    cells = run_ranks(bench.rank_dry_run, 1, 0.0, 3)[0]
    # The embedding; for each of the halves its reduction, and 2 stages for each of 6 blocks.
    assert [cell.labels["stages"] for cell in cells] == [1 + 13, 1 + 2 * 13]
    assert len(bench.dry_run_table(cells).splitlines()) == 2 + 2


def test_prefill_is_measured_in_every_way() -> None:
    """A single token cannot be split; the others are, in order and beside each other."""
    cells = run_ranks(bench.rank_prefill, 2, ((1, 1), (2, 8)), 0.0, "bf16", SMALL)[0]
    assert [len(cell.seconds) for cell in cells] == [2, 4]
    assert all(spread.min > 0 for cell in cells for spread in cell.seconds.values())
    header, _, one, several = markdown_table(cells, ["batch", "tokens"]).splitlines()
    assert header.split(" | ")[2:6] == ["split=never", "split=auto", "in order", "thread"]
    assert one.split(" | ")[4:6] == ["-", "-"]
    assert "-" not in several.split(" | ")
