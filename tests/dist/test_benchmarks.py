"""The benchmarks run, check what they time and measure every provider; no figure is judged here."""

from benchmarks import bench_allreduce_rmsnorm as bench
from benchmarks import bench_row_kernels
from benchmarks.allreduce_rmsnorm_providers import BASELINE
from tokenfabric import native
from tokenfabric.testing.bench_report import markdown_table
from tokenfabric.testing.spawn import run_ranks

# Compiling takes longer than everything else here, and is torch's business.
NOT_COMPILED = {"TORCHDYNAMO_DISABLE": "1"}


def test_the_reduction_benchmark_measures_every_provider() -> None:
    """Every provider passes its check, on fewer tokens than ranks too."""
    tokens = [1, 5]
    cells = run_ranks(
        bench._rank_reductions, 2, "bf16", 256, tokens, 0.0, environment=NOT_COMPILED
    )[0]
    assert [cell.labels["tokens"] for cell in cells] == tokens
    for cell in cells:
        assert cell.baseline == BASELINE
        assert len(cell.seconds) == 10
        assert cell.speedup.keys() == cell.seconds.keys() - {BASELINE}
        assert all(spread.min > 0 for spread in cell.seconds.values())
        assert cell.labels["bound_s"] > 0
    assert len(markdown_table(cells, ["tokens", "bound"]).splitlines()) == 2 + len(tokens)


def test_the_barrier_benchmark_measures_with_and_without_gloo() -> None:
    """Three conditions, one row each."""
    cells = run_ranks(bench._rank_barrier, 2, 2)[0]
    assert [cell.labels["gloo"] for cell in cells] == ["idle", "between its calls", "gone"]
    assert len(bench.barrier_table(cells).splitlines()) == 2 + 3


def test_the_row_benchmark_measures_every_body_and_form() -> None:
    """Every body of this CPU in three dtypes, and the forms on two ranks, pass their checks."""
    bodies = run_ranks(bench_row_kernels._rank_bodies, 1, [96], [5], 0.0)[0]
    assert [cell.labels["dtype"] for cell in bodies] == ["bfloat16", "float16", "float32"]
    for cell in bodies:
        assert list(cell.seconds) == native.weave.usable_row_kernels()
    (forms,) = run_ranks(bench_row_kernels._rank_forms, 2, [200], [5], 0.0)[0]
    assert forms.baseline == "plain"
    assert {"fp16", "layer_norm", "fp8 per token", "int8 per token"} <= forms.seconds.keys()
