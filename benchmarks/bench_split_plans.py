"""What splitting is predicted to gain, under the planner's own costs and under worse ones.

    python -m benchmarks.bench_split_plans            # half a minute; nothing is measured

Every plan is made with the device's nominal costs and then simulated with others, beside what it
replaces: all-reduce and norm as two kernels, without overlap, on the same machine. Writes
benchmarks/results/split_plans_simulated.{md,json}.
"""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from rich.console import Console

from benchmarks.published_runs import RANKS, Point, kernel_points, prefill_points, unsplit_plan
from tokenfabric.simulate import simulate
from tokenweave.batch import Batch
from tokenweave.device import Device
from tokenweave.device_tables import load_device, published_models
from tokenweave.model_shape import ModelShape
from tokenweave.split import plan_split
from tokenweave.split_plan import ReductionChoice, SplitPlan
from tokenweave.stage_work import FusedWork, UnfusedWork, machine_of

_RESULTS = Path(__file__).resolve().parent / "results"
SIZES = (1, 2, 7, 8, 33, 64, 128, 255, 384, 512, 640, 768, 896, 1024, 1152, 1280, 1537, 1792,
         2048, 2304, 2560, 3000, 3584, 4096, 5120, 6144, 8192, 11000, 16384, 24576, 32768, 49152,
         65536)  # fmt: skip
COSTS = {
    "nominal": (1.0, 1.0, 1.0),
    "link -10 %": (0.9, 1.0, 1.0),
    "communication x1.26": (1.0, 1.26, 1.0),
    "computation x1.04": (1.0, 1.0, 1.04),
    "all three": (0.9, 1.26, 1.04),
}
"""Factors on the link's bandwidth, and on reductions and blocks while they run side by side."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """The gains of one plan."""

    model: str
    tokens: int
    kind: str
    boundary: int
    speedup: dict[str, float]
    """Over all-reduce and norm as two kernels, by costs."""


def gain(
    shape: ModelShape, tokens: int, device: Device, plan: SplitPlan, costs: tuple[float, ...]
) -> float:
    """Return the time of the unfused pass over that of a plan, both simulated with the costs."""
    link, communication, computation = costs
    present, batch = device.with_link(link), Batch([tokens])
    machine = machine_of(
        present, communication_slowdown=communication, computation_slowdown=computation
    )
    unfused_s = 0.0
    for algorithm in ("one_shot", "two_shot"):
        choice = ReductionChoice(
            algorithm="one_shot" if algorithm == "one_shot" else "two_shot",
            num_sms=device.unfused_sms,
        )
        work = UnfusedWork(shape, RANKS, present, batch)
        times = [
            simulate(unsplit_plan(few, tokens, choice).lower(work), machine).makespan_s
            for few in (replace(shape, num_layers=4), replace(shape, num_layers=8))
        ]
        time_s = _all_layers(shape, *times)
        unfused_s = time_s if unfused_s == 0.0 else min(unfused_s, time_s)
    fused = FusedWork(shape, RANKS, present, batch)
    times = [
        simulate(replace(plan, num_layers=layers).lower(fused), machine).makespan_s
        for layers in (4, 8)
    ]
    return unfused_s / _all_layers(shape, *times)


def _all_layers(shape: ModelShape, few_s: float, more_s: float) -> float:
    """Layers are alike: what one more costs is the same from the third on."""
    return few_s + (shape.num_layers - 4) * (more_s - few_s) / 4


def rows(device: Device, sizes: tuple[int, ...] = SIZES) -> list[Row]:
    """Return the gains of every published model at every size."""
    found = []
    for name, shape in published_models().items():
        for tokens in sizes:
            plan = plan_split(tokens, shape=shape, world_size=RANKS, device=device)
            found.append(
                Row(
                    model=name,
                    tokens=tokens,
                    kind=plan.kind,
                    boundary=plan.boundary,
                    speedup={
                        label: gain(shape, tokens, device, plan, costs)
                        for label, costs in COSTS.items()
                    },
                )
            )
    return found


def main() -> None:
    """Simulate, write both files and show the worst and the named case."""
    found = rows(load_device("h100"))
    (_RESULTS / "split_plans_simulated.json").write_text(
        json.dumps([asdict(row) for row in found], indent=1) + "\n"
    )
    (_RESULTS / "split_plans_simulated.md").write_text(_page(found))
    Console().print(_summary(found))


def _summary(found: list[Row]) -> str:
    worst = min(found, key=lambda row: min(row.speedup.values()))
    (named,) = (r for r in found if r.model == "Llama-3.3-70B-Instruct" and r.tokens == 8192)
    return (
        f"Lowest of all {len(found)} plans under any costs: {min(worst.speedup.values()):.3f}x "
        f"({worst.model}, {worst.tokens} tokens).\n"
        f"Llama-3.3-70B at 8192 tokens: {named.speedup['nominal']:.3f}x nominal, "
        f"{min(named.speedup.values()):.3f}x to {max(named.speedup.values()):.3f}x over all."
    )


def _page(found: list[Row]) -> str:
    scored = [p for p in prefill_points() if p.is_scored and not p.is_calibration]
    kernels = [p for p in kernel_points() if not p.is_calibration]
    lines = [
        "# Split plans, simulated",
        "",
        "**Simulated, not measured**: 8 ranks of `tokenweave/tables/h100.json`, launches in "
        "graphs. A cell is the time of all-reduce and norm as two kernels (the better of one- and "
        "two-shot) over that of the plan, both under the column's costs. Plans are made with "
        "nominal costs.",
        "",
        "Against the published runs that it was not calibrated on, the simulator is off by "
        f"{_mean(scored):.1%} on average and {_most(scored):.1%} at most ({len(scored)} prefills), "
        f"and by {_mean(kernels):.1%} and {_most(kernels):.1%} ({len(kernels)} kernels).",
        "",
        *_summary(found).splitlines(),
        "",
        "| model | tokens | plan | boundary | " + " | ".join(COSTS) + " |",
        "| --- | --- | --- | --- |" + " --- |" * len(COSTS),
    ]
    lines += [
        f"| {row.model} | {row.tokens} | {row.kind.replace('_', ' ')} | "
        f"{row.boundary if row.kind == 'split' else ''} | "
        + " | ".join(f"{row.speedup[label]:.3f}" for label in COSTS)
        + " |"
        for row in found
    ]
    return "\n".join(lines) + "\n"


def _mean(points: list[Point]) -> float:
    return sum(abs(point.error) for point in points) / len(points)


def _most(points: list[Point]) -> float:
    return max(abs(point.error) for point in points)


if __name__ == "__main__":
    main()
