"""What others have published, predicted by the simulator: TokenWeave's prefill and kernels.

The constants of the device come from tokenweave/tables/h100.json, those of the inference engine
around the layers, and the twelve points behind both, from benchmarks/published/calibration.json.
"""

import csv
import json
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from tokenfabric.simulate import simulate
from tokenweave.batch import Batch
from tokenweave.device import Device
from tokenweave.device_tables import load_device, published_models
from tokenweave.model_shape import ModelShape
from tokenweave.reduction_cost import reduction_s
from tokenweave.split_plan import PartPlan, ReductionChoice, SplitPlan
from tokenweave.stage_work import FusedWork, UnfusedWork, machine_of

FOLDER = Path(__file__).resolve().parent / "published"
RANKS = 8
Mode = Literal["no_ar", "baseline_multimem", "overlap_fused"]
MODES: tuple[Mode, ...] = ("no_ar", "baseline_multimem", "overlap_fused")
NOT_SCORED = ("Mixtral-8x22B-Instruct-v0.1", 1024)
"""Bound by the host; its published time cannot come from the published code."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Point:
    """One published time and what is predicted for it, in seconds."""

    label: str
    published_s: float
    predicted_s: float
    is_calibration: bool = False
    is_scored: bool = True

    @property
    def error(self) -> float:
        """Relative; positive where the prediction is too long."""
        return self.predicted_s / self.published_s - 1.0


def read_csv(name: str) -> list[dict[str, str]]:
    """Return the rows of a published file."""
    with (FOLDER / name).open(newline="") as file:
        return list(csv.DictReader(file))


@lru_cache(maxsize=1)
def calibration() -> dict[str, Any]:
    """Return the points and the constants that follow from them."""
    found: dict[str, Any] = json.loads((FOLDER / "calibration.json").read_text())
    return found


def prefill_label(model: str, tokens: int, mode: str) -> str:
    """Return the name of a cell of figure 11a."""
    return f"{model} {tokens} {mode}"


def prefill_points() -> list[Point]:
    """Return all cells of figure 11a."""
    device, engine_s = load_device("h100"), float(calibration()["constants"]["engine_s"])
    points = []
    for row in read_csv("figure_11a.csv"):
        model, tokens = row["model"], int(row["prompt_len"])
        for mode in MODES:
            label = prefill_label(model, tokens, mode)
            points.append(
                Point(
                    label=label,
                    published_s=float(row[mode]) * 1e-3,
                    predicted_s=predict_prefill_s(model, tokens, mode, device, engine_s),
                    is_calibration=label in calibration()["prefill_points"],
                    is_scored=(model, tokens) != NOT_SCORED,
                )
            )
    return points


def predict_prefill_s(
    model: str, tokens: int, mode: Mode, device: Device, engine_s: float
) -> float:
    """Return the time of one prompt of so many tokens, run as the published code runs it."""
    shape = published_models()[model]
    # Layers are alike: what one more costs is the same from the third on.
    few, more = (_run_s(replace(shape, num_layers=n), tokens, mode, device) for n in (4, 8))
    return engine_s + few + (shape.num_layers - 4) * (more - few) / 4


def _run_s(shape: ModelShape, tokens: int, mode: Mode, device: Device) -> float:
    batch, machine = Batch([tokens]), machine_of(device, has_graphs=False)
    if mode == "overlap_fused":
        schedule = published_plan(shape, tokens).lower(FusedWork(shape, RANKS, device, batch))
    else:
        choice = ReductionChoice(algorithm="two_shot", num_sms=device.unfused_sms)
        plan = unsplit_plan(shape, tokens, choice)
        has_all_reduce = mode == "baseline_multimem"
        work = UnfusedWork(shape, RANKS, device, batch, has_all_reduce=has_all_reduce)
        schedule = plan.lower(work)
    return simulate(schedule, machine).makespan_s


def unsplit_plan(shape: ModelShape, tokens: int, choice: ReductionChoice) -> SplitPlan:
    """Return the plan that does all tokens at once, every reduction alike."""
    return SplitPlan(
        kind="fused_only",
        num_tokens=tokens,
        boundary=tokens,
        num_layers=shape.num_layers,
        parts=tuple(PartPlan(name=name, reductions=(choice,)) for name in ("attention", "mlp")),
        entry=(choice,),
        last=choice,
    )


def published_plan(shape: ModelShape, tokens: int) -> SplitPlan:
    """Return what TokenWeave ran in figure 11a, from its tables."""
    table = json.loads((FOLDER / "plans.json").read_text())["plans"]
    attention, mlp, offset = table[shape.name][str(tokens)]

    def choices(num_sms: int) -> tuple[ReductionChoice, ReductionChoice]:
        choice = ReductionChoice(algorithm="two_shot", num_sms=num_sms)
        return choice, choice

    return SplitPlan(
        kind="split",
        num_tokens=tokens,
        boundary=(tokens + 255) // 256 * 256 // 2 + offset,
        num_layers=shape.num_layers,
        # Its stages name the block beside which a reduction runs: the head's reduction after
        # attention runs beside the tail's attention, the tail's beside the head's MLP.
        parts=(
            PartPlan(name="attention", reductions=(choices(attention)[0], choices(mlp)[0])),
            PartPlan(name="mlp", reductions=(choices(mlp)[0], choices(attention)[0])),
        ),
        entry=choices(attention),
        last=choices(16 if tokens < 16384 else 32)[0],
    )


def kernel_points() -> list[Point]:
    """Return figures 7 and 10: a plain all-reduce and the fused kernel by blocks."""
    known, device = calibration()["kernel_points"], load_device("h100").isolated()
    points = []
    for kind, name, key, column in (
        ("all_reduce", "figure_7.csv", "BL", "multimem_ar_us_ctas_"),
        ("fused", "figure_10.csv", "num_tokens", "fused_arln_us_ctas_"),
    ):
        for row in read_csv(name):
            for field, value in row.items():
                if field.startswith(column):
                    tokens, blocks = int(row[key]), int(field.removeprefix(column))
                    label = f"{kind} {tokens} {blocks}"
                    points.append(
                        Point(
                            label=label,
                            published_s=float(value) * 1e-6,
                            predicted_s=predict_kernel_s(kind, tokens, blocks, device),
                            is_calibration=label in known,
                        )
                    )
    return points


def predict_kernel_s(kind: str, tokens: int, blocks: int, device: Device) -> float:
    """Return the time of one reduction of [tokens, 8192] over 8 ranks."""
    choice = ReductionChoice(algorithm="two_shot", num_sms=blocks)
    assert kind == "fused" or kind == "all_reduce"
    return reduction_s(kind, choice, tokens, 8192, RANKS, device)
