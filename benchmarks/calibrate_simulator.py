"""Derive the simulator's constants for an H100 from twelve published points, and write them down.

    python -m benchmarks.calibrate_simulator          # a few seconds; deterministic

Six points give the kernels of the reductions, each constant in closed form; six give the rates of
GEMM, attention and experts, the link at work, the engine around the layers and the host's time for
a block of experts, each by solving for the one point it matters most for, in turn, until nothing
moves. Writes tokenweave/tables/h100.json and benchmarks/published/calibration.json.
"""

import json
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from benchmarks.published_runs import FOLDER, Mode, predict_prefill_s, prefill_label, read_csv
from tokenweave.device import Device
from tokenweave.device_tables import parse_device

_TABLE = Path(__file__).resolve().parents[1] / "tokenweave" / "tables" / "h100.json"
_LLAMA, _MIXTRAL = "Llama-3.3-70B-Instruct", "Mixtral-8x22B-Instruct-v0.1"
_HIDDEN_BYTES, _RANKS = 16384, 8
# What each constant is solved for, in this order.
_SOLVED: tuple[tuple[str, tuple[str, int, Mode]], ...] = (
    ("gemm_flops_per_sm", (_LLAMA, 8192, "no_ar")),
    ("attention_flops_per_sm", (_LLAMA, 65536, "no_ar")),
    ("engine_s", (_LLAMA, 1024, "no_ar")),
    ("link_bandwidth", (_LLAMA, 4096, "baseline_multimem")),
    ("expert_flops_per_sm", (_MIXTRAL, 16384, "no_ar")),
    ("expert_launch_s", (_MIXTRAL, 1024, "overlap_fused")),
)
_KERNEL_POINTS = (
    ("all_reduce", 64, 8), ("fused", 256, 32), ("all_reduce", 32768, 16),
    ("all_reduce", 32768, 2), ("fused", 32768, 2), ("fused", 32768, 4),
)  # fmt: skip
_ROUNDS = 8


def main() -> None:
    """Solve, write both files and say what came out."""
    table = json.loads(_TABLE.read_text())
    kernels = _kernel_constants()
    device = replace(_device(table), **{**kernels, "isolated_link_slowdown": 1.0})
    link_alone = kernels["link_bandwidth"]
    engine_s = 3e-3
    for _ in range(_ROUNDS):
        for name, point in _SOLVED:
            if name == "engine_s":
                engine_s += _published_s(*point) - predict_prefill_s(*point, device, engine_s)
            else:
                device = _solve(name, point, device, engine_s)
    solved = {name: getattr(device, name) for name, _ in _SOLVED if name != "engine_s"}
    solved["isolated_link_slowdown"] = device.link_bandwidth / link_alone
    # Three digits are more than a median of microseconds carries.
    rounded = {name: _rounded(value, 3) for name, value in kernels.items()}
    rounded |= {name: _rounded(value) for name, value in solved.items()}
    for name, value in rounded.items():
        table["numbers"][name]["value"] = value
    _TABLE.write_text(json.dumps(table, indent=1) + "\n")
    result = {
        "source": "microsoft/tokenweave, artifact/csvs, commit f483d1c",
        "kernel_points": [f"{kind} {tokens} {blocks}" for kind, tokens, blocks in _KERNEL_POINTS],
        "prefill_points": [prefill_label(*point) for _, point in _SOLVED],
        "constants": {"engine_s": _rounded(engine_s), **rounded},
    }
    (FOLDER / "calibration.json").write_text(json.dumps(result, indent=1) + "\n")
    Console().print(result["constants"])


def _device(table: dict[str, object]) -> Device:
    return parse_device(json.dumps(table))


def _kernel_constants() -> dict[str, float]:
    """Return the constants of the reductions: six equations, six unknowns."""
    time = {point: _kernel_s(*point) for point in _KERNEL_POINTS}
    small, many, saturated, plain, two, four = (time[point] for point in _KERNEL_POINTS)
    rows = 32768 // _RANKS
    start_s = signal_s = 0.0
    # The start and the signals are a percent of the large times: a few rounds settle all.
    for _ in range(20):
        link_s = (saturated - start_s - 16 * signal_s) / rows
        start_s = small - 8 * signal_s - 8 * link_s
        signal_s = (many - start_s - 32 * link_s) / 32
    latency = {
        2: (two - start_s - 2 * signal_s) * 2 / rows,
        4: (four - start_s - 4 * signal_s) * 4 / rows,
    }
    interference_s = (latency[4] - latency[2]) / 2
    plain_s = (plain - start_s - 2 * signal_s) * 2 / rows
    return {
        "two_shot_start_s": start_s,
        "block_signal_s": signal_s,
        "row_interference_s": interference_s,
        "fused_row_s": latency[2] - 2 * interference_s,
        "all_reduce_row_s": plain_s - 2 * interference_s,
        "link_bandwidth": _HIDDEN_BYTES * (_RANKS + 1) / link_s,
    }


def _kernel_s(kind: str, tokens: int, blocks: int) -> float:
    name, key, column = {
        "fused": ("figure_10.csv", "num_tokens", "fused_arln_us_ctas_"),
        "all_reduce": ("figure_7.csv", "BL", "multimem_ar_us_ctas_"),
    }[kind]
    (row,) = (row for row in read_csv(name) if int(row[key]) == tokens)
    return float(row[f"{column}{blocks}"]) * 1e-6


def _published_s(model: str, tokens: int, mode: Mode) -> float:
    rows = read_csv("figure_11a.csv")
    (row,) = (it for it in rows if it["model"] == model and int(it["prompt_len"]) == tokens)
    return float(row[mode]) * 1e-3


def _solve(name: str, point: tuple[str, int, Mode], device: Device, engine_s: float) -> Device:
    """Return the device with a constant for which the point comes out, by bisection."""

    def too_long(value: float) -> bool:
        tried = replace(device, **{name: value})
        return predict_prefill_s(*point, tried, engine_s) > _published_s(*point)

    low, high = _bounds(name, getattr(device, name))
    grows = too_long(high)
    for _ in range(26):
        middle = (low + high) / 2
        if too_long(middle) == grows:
            high = middle
        else:
            low = middle
    return replace(device, **{name: (low + high) / 2})


def _bounds(name: str, value: float) -> tuple[float, float]:
    return (0.0, 2e-3) if name == "expert_launch_s" else (value / 2, value * 2)


def _rounded(value: float, digits: int = 4) -> float:
    return float(f"{value:.{digits}g}")


if __name__ == "__main__":
    main()
