"""The benchmark of several hosts runs and checks what it times; no figure is judged here."""

from benchmarks import bench_hosts
from benchmarks.allreduce_rmsnorm_providers import BASELINE
from tokenfabric.testing.bench_report import markdown_table
from tokenfabric.testing.spawn import run_ranks

# Compiling takes longer than everything else here, and is torch's business.
NOT_COMPILED = {"TORCHDYNAMO_DISABLE": "1"}


def test_the_benchmark_of_several_hosts_measures_every_provider() -> None:
    """Every provider passes its check, on fewer tokens than ranks too."""
    tokens = [1, 5]
    cells = run_ranks(
        bench_hosts.rank_cells, 2, bench_hosts.LOOPBACK, tokens, 256, 0.0,
        with_world=False, environment=NOT_COMPILED,
    )[0]  # fmt: skip
    assert [cell.labels["tokens"] for cell in cells] == tokens
    for cell in cells:
        assert cell.labels["hosts"] == 2
        assert len(cell.seconds) == 4
        assert cell.speedup.keys() == cell.seconds.keys() - {BASELINE}
    assert len(markdown_table(cells, ["tokens"]).splitlines()) == 2 + len(tokens)
