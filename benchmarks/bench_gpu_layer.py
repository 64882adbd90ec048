"""A layer of one rank of eight of Llama-3.3-70B: overlapped, in order, and its parts alone.

    python -m benchmarks.bench_gpu_layer            # half a minute
    python -m benchmarks.bench_gpu_layer --quick    # two sizes, nothing written

The rank's own shapes and the real executor, in CUDA graphs. The reduction is that of a world of one
rank with the plan's SM budgets: it takes its SMs and this GPU's memory bandwidth, and no link. So
the figures say how well two streams share a GPU, and nothing about communication between GPUs.
"""

import dataclasses

import torch
from rich.console import Console

import tokenfabric
from benchmarks.gpu_layer import RankLayers
from benchmarks.gpu_options import REPOSITORY, gpu, parse
from tokenfabric.testing.bench import Budget, Cell
from tokenfabric.testing.bench_report import markdown_table
from tokenfabric.testing.gpu_report import (
    Captured,
    gpu_facts,
    measure_captured,
    write_gpu_results,
)
from tokenfabric.testing.tolerance import assert_same_bits
from tokenfabric.world import World
from tokenweave.device_at_hand import choose_table
from tokenweave.device_tables import load_device
from tokenweave.model_shape import ModelShape
from tokenweave.split import plan_split
from tokenweave.split_plan import PartPlan, ReductionChoice, SplitPlan

RUNG = "measured on one GPU, a rank's layer beside a reduction that crosses no link (L3)"
_SHAPE = ModelShape(
    name="Llama-3.3-70B", num_layers=80, hidden=8192, num_query_heads=64, num_kv_heads=8,
    head_dim=128, intermediate=28672, vocab=128256,
)  # fmt: skip
_WORLD_SIZE = 8
_LAYERS = 2
_TOKENS = (1024, 2048, 4096, 8192, 16384)
_IN_ORDER, _OVERLAPPED = "in order", "overlapped"
_COMPUTE, _REDUCTIONS, _WHOLE = "blocks alone", "reductions alone", "not split"
_FEW_SMS = ReductionChoice(algorithm="two_shot", num_sms=8)


def plan_of(num_tokens: int, gpu_name: str) -> tuple[SplitPlan, str]:
    """Return the split plan that is measured, and by what it was made."""
    found = choose_table(gpu_name, _WORLD_SIZE, _WORLD_SIZE)
    if found.name:
        plan = plan_split(
            num_tokens, shape=_SHAPE, world_size=_WORLD_SIZE, device=load_device(found.name)
        )
        if plan.is_split:
            return plan, f"planned ({found.name})"
    return _halves(num_tokens), "halves, 8 SMs"


def _halves(num_tokens: int) -> SplitPlan:
    both = (_FEW_SMS, _FEW_SMS)
    return SplitPlan(
        kind="split", num_tokens=num_tokens, boundary=num_tokens // 2, num_layers=_LAYERS,
        parts=tuple(PartPlan(name=name, reductions=both) for name in ("attention", "mlp")),
        entry=both, last=_FEW_SMS,
    )  # fmt: skip


def whole_plan(num_tokens: int) -> SplitPlan:
    """Return the plan that splits nothing."""
    choice = ReductionChoice(algorithm="two_shot", num_sms=16)
    return SplitPlan(
        kind="fused_only", num_tokens=num_tokens, boundary=num_tokens, num_layers=_LAYERS,
        parts=tuple(PartPlan(name=name, reductions=(choice,)) for name in ("attention", "mlp")),
        entry=(choice,), last=choice,
    )  # fmt: skip


def main() -> None:
    """Measure, show the table and write the result files."""
    options = parse((__doc__ or "").splitlines()[0], seconds=2.0)
    console, device = Console(width=140), gpu()
    facts = gpu_facts(REPOSITORY, device, options.commit)
    console.print(facts.describe(RUNG), soft_wrap=True)
    with tokenfabric.init(device="cuda") as world, torch.no_grad():
        cells = [
            _measure(tokens, facts.gpu, world, options.seconds)
            for tokens in ((1024, 8192) if options.quick else _TOKENS)
        ]
    table = markdown_table(cells, list(cells[0].labels))
    console.print(table, soft_wrap=True, highlight=False)
    report = [f"# A rank's layer on two streams\n\n{facts.describe(RUNG)}", _LEGEND, table]
    if not options.quick:
        path = write_gpu_results(options.directory, "gpu_layer", facts, cells, report, rung=RUNG)
        console.print(f"wrote {path} and .md", soft_wrap=True)


_LEGEND = f"""\
Time of one layer of {_SHAPE.name} on one of {_WORLD_SIZE} ranks, bf16, one causal sequence, of
{_LAYERS} layers in a CUDA graph. "{_IN_ORDER}" is the same split plan on one stream, the sum of
"{_COMPUTE}" and "{_REDUCTIONS}"; "{_WHOLE}" is the unsplit pass, reductions on up to 16 SMs.
"hidden" is the share of the reductions' time that overlapping saves: (in order - overlapped) /
reductions alone. A reduction here reads and writes all rows of one rank in local memory."""


def _measure(num_tokens: int, gpu_name: str, world: World, seconds: float) -> Cell:
    plan, made_by = plan_of(num_tokens, gpu_name)
    layers = RankLayers(_SHAPE, _WORLD_SIZE, _LAYERS, num_tokens, world)
    walks = {
        _IN_ORDER: layers.walk(plan, "compute", "communication"),
        _OVERLAPPED: layers.walk(plan),
        _COMPUTE: layers.walk(plan, "compute"),
        _REDUCTIONS: layers.walk(plan, "communication"),
        _WHOLE: layers.walk(whole_plan(num_tokens)),
    }
    ordered = walks[_IN_ORDER]()
    assert ordered.isfinite().all()
    assert_same_bits(walks[_OVERLAPPED](), ordered, what="overlapped")
    cell = measure_captured(
        {name: Captured([walk], world.device) for name, walk in walks.items()},
        baseline=_IN_ORDER,
        labels={},
        device=world.device,
        budget=Budget(seconds=seconds),
    )
    per_layer = {
        name: dataclasses.replace(
            it, **{key: value / _LAYERS for key, value in dataclasses.asdict(it).items()}
        )
        for name, it in cell.seconds.items()
    }
    medians = {name: it.median for name, it in per_layer.items()}
    saved = medians[_IN_ORDER] - medians[_OVERLAPPED]
    budgets = {it.num_sms for part in plan.parts for it in part.reductions}
    labels = {
        "tokens": num_tokens,
        "split": f"{plan.boundary}, {made_by}",
        "SMs": "-".join(map(str, sorted({min(budgets), max(budgets)}))),
        "hidden": f"{saved / medians[_REDUCTIONS]:.0%}",
    }
    return dataclasses.replace(cell, labels=labels, seconds=per_layer)


if __name__ == "__main__":
    main()
