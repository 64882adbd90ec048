"""The benchmarks run, check what they time and measure every provider; no figure is judged here."""

import json
from itertools import islice
from pathlib import Path

import pytest

from benchmarks import bench_allreduce_rmsnorm as bench
from benchmarks import bench_planners, bench_ring, bench_row_kernels, bench_training
from benchmarks.allreduce_rmsnorm_providers import BASELINE
from tokenfabric import native
from tokenfabric.testing.bench_report import markdown_table
from tokenfabric.testing.spawn import run_ranks
from tokenweave import split, split_cost

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


def test_the_ring_benchmark_measures_each_plan_once() -> None:
    """Between two ranks a relay is a push; forward and both come from the same calls."""
    strategies = ["q", "q_push", "kv", "allgather", "auto"]
    forward, both = run_ranks(
        bench_ring.rank_cells, 2, (64, 8, False, "bf16"), "both", strategies, 0.0, 1
    )[0]
    assert (forward.labels["auto takes"], both.labels["auto takes"]) == (
        "allgather",
        "allgather, q_push",
    )
    assert both.same_as == forward.same_as == {"q_push": "q"}
    assert both.seconds.keys() == {"plain ring", *strategies, "blocks alone"}
    for name, spread in both.seconds.items():
        assert spread.min > forward.seconds[name].min > 0


def test_the_ring_benchmark_goes_on_where_it_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """--stop-after begins no cell that is late; --resume measures the cells that are missing."""
    command = "bench_ring --ranks 2 --tokens 64 --kv-heads 1 --strategies kv auto --passes forward"
    command += f" --seconds 0 --rounds 1 --directory {tmp_path}"

    def lines(*more: str) -> list[str]:
        monkeypatch.setattr("sys.argv", [*command.split(), *more])
        bench_ring.main()
        return [line for path in tmp_path.glob("*.jsonl") for line in path.open()]

    assert lines("--stop-after", "-1") == []
    first = lines()
    assert [json.loads(line)["labels"]["causal"] for line in first] == [False, True]
    (path,) = tmp_path.glob("*.jsonl")
    path.write_text(first[1])
    resumed = lines("--resume")
    assert resumed[1] == first[1]
    assert json.loads(resumed[0])["labels"]["causal"] is False


def test_the_training_benchmark_measures_a_ring_and_ranks_alone() -> None:
    """Both begin with one loss, and the ring's share of communication is measured."""
    (cell,) = run_ranks(bench_training.rank_cells, 2, 64, 1, timeout_s=110)[0]
    assert cell.baseline == bench_training.ALONE
    assert list(cell.seconds) == [bench_training.ALONE, bench_training.RING, bench_training.AGAIN]
    assert cell.labels["ring_seconds"] > 0
    assert cell.labels["parameters_seconds"] > 0


def test_the_planner_benchmark_measures_one_rank_and_all() -> None:
    """Every case gives a cell, every cell has a place in a table."""
    ring = islice(bench_planners.ring_cases(8), 9)
    cells = [bench_planners.measure(case, 0.0, 1) for case in ring]
    assert all(cell.seconds["all ranks"].min > 0 for cell in cells)
    assert len(bench_planners.ring_table(cells).splitlines()) == 2 + 1
    packed = [bench_planners.measure(next(bench_planners.packed_cases()), 0.0, 1)]
    assert packed[0].seconds.keys() == {"deal", "forward", "backward"}
    columns = ("ranks", "tokens", "strategy")
    assert len(bench_planners.named_table(packed, columns).splitlines()) == 2 + 1


def test_the_planner_benchmark_measures_splits_of_new_and_of_known_models() -> None:
    """Every plan is made, none remembered; of a known model its costs are."""
    (case,) = islice(bench_planners.split_cases(), 2, 3)
    cell = bench_planners.measure(case, 0.0, 1)
    assert (cell.labels["tokens"], list(cell.seconds)) == (2048, ["first", "known model"])
    made = {}
    for name, call in case.calls.items():
        case.before[name]()
        known = split_cost._row_costs.cache_info().misses
        call()
        made[name] = split_cost._row_costs.cache_info().misses - known
        assert split._planned.cache_info().hits == 0
    assert made["known model"] < made["first"]
