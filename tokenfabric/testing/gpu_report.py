"""What a benchmark on a GPU leaves behind: the machine's facts, JSON and a table per result."""

import dataclasses
import datetime
import json
import platform
import re
import shutil
import subprocess
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from tokenfabric.testing.bench import Budget, measure
from tokenfabric.testing.bench_cell import Cell, Spread
from tokenfabric.testing.bench_report import environment

_UNKNOWN = "unknown"


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class GpuFacts:
    """Where and when a result was measured."""

    gpu: str
    compute_capability: str
    num_sms: int
    memory_gib: float
    driver: str
    cuda: str
    """CUDA version of torch."""
    torch: str
    python: str
    commit: str
    date: str

    @property
    def machine(self) -> str:
        """Return the GPU's name, fit for a file name."""
        return re.sub(r"[^a-z0-9]+", "-", self.gpu.lower().removeprefix("nvidia ")).strip("-")

    def describe(self, rung: str) -> str:
        """Return one paragraph for the head of a table."""
        return (
            f"{rung}: {self.gpu} ({self.num_sms} SMs, {self.memory_gib:g} GiB), driver "
            f"{self.driver}, torch {self.torch} (CUDA {self.cuda}), Python {self.python}; commit "
            f"{self.commit}, {self.date}."
        )


def gpu_facts(repository: Path, device: torch.device, commit: str | None = None) -> GpuFacts:
    """Read the facts of a GPU and of the checkout.

    Args:
        commit: of the sources, where the repository is a copy without git.
    """
    found = torch.cuda.get_device_properties(device)
    return GpuFacts(
        gpu=found.name,
        compute_capability=f"{found.major}.{found.minor}",
        num_sms=found.multi_processor_count,
        memory_gib=round(found.total_memory / 2**30, 1),
        driver=_driver(),
        cuda=torch.version.cuda or _UNKNOWN,
        torch=torch.__version__,
        python=platform.python_version(),
        commit=commit or environment(repository).commit,
        date=datetime.datetime.now(datetime.UTC).date().isoformat(),
    )


def write_gpu_results(
    directory: Path,
    what: str,
    facts: GpuFacts,
    cells: Iterable[Cell],
    report: Sequence[str],
    *,
    rung: str,
    notes: dict[str, Any] | None = None,
) -> Path:
    """Write `<what>_<gpu>_<date>.json` and `.md`; return the path of the first.

    Args:
        cells: what was measured.
        report: the parts of the page, a title first.
        rung: the kind of evidence.
        notes: further numbers, for the JSON alone.
    """
    path = directory / f"{what}_{facts.machine}_{facts.date}.json"
    content = {
        "rung": rung,
        "environment": dataclasses.asdict(facts),
        "cells": [dataclasses.asdict(cell) for cell in cells],
        "notes": notes or {},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n")
    path.with_suffix(".md").write_text("\n\n".join(report) + "\n")
    return path


class Captured:
    """Calls in a CUDA graph: what is timed is the GPU's work and no launch from Python."""

    def __init__(self, calls: Sequence[Callable[[], object]], device: torch.device) -> None:
        """Run every call once, then capture them in order."""
        self.num_calls = len(calls)
        for call in calls:
            call()
        torch.cuda.synchronize(device)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            for call in calls:
                call()

    def __call__(self) -> None:
        self._graph.replay()


def measure_captured(
    providers: dict[str, Captured],
    *,
    baseline: str,
    labels: dict[str, Any],
    device: torch.device,
    budget: Budget,
) -> Cell:
    """Time graphs of equally many calls; the cell holds the time of one call.

    Their results are to be checked before: a graph returns nothing.
    """
    counts = {it.num_calls for it in providers.values()}
    if len(counts) != 1:
        raise ValueError(f"graphs of different numbers of calls cannot be compared: {counts}")
    cell = measure(
        providers,
        baseline=baseline,
        check=lambda name, result: None,
        labels=labels,
        budget=budget,
        finish=lambda: torch.cuda.synchronize(device),
    )
    count = counts.pop()
    return dataclasses.replace(
        cell, seconds={name: _divided(it, count) for name, it in cell.seconds.items()}
    )


def _divided(spread: Spread, count: int) -> Spread:
    return Spread(**{key: value / count for key, value in dataclasses.asdict(spread).items()})


def _driver() -> str:
    if shutil.which("nvidia-smi") is None:
        return _UNKNOWN
    run = subprocess.run(
        ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"],
        capture_output=True,
        text=True,
        check=False,
    )
    return run.stdout.strip().partition("\n")[0] or _UNKNOWN
