"""What a benchmark leaves behind: facts about the machine, JSON lines and a table. See bench.py."""

import dataclasses
import datetime
import json
import os
import platform
import re
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tokenfabric.testing.bench_cell import Cell, Spread


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Environment:
    """Where and when a result was measured."""

    machine: str
    """CPU model, instruction set and usable cores, short enough for a file name."""
    cpu: str
    isa: str
    """The widest of the native row kernels that this CPU runs: models of one name differ in it."""
    num_cores: int
    """Cores this process may use."""
    governor: str
    """Frequency governor of core 0; "unknown" where the system does not say (most virtual ones)."""
    memory_gib: float
    kernel: str
    python: str
    torch: str
    commit: str
    """Abbreviated commit of the working tree; "+changes" when tracked files other than results
    differ from it."""
    date: str

    @property
    def month(self) -> str:
        return self.date[:7].replace("-", "")


def environment(repository: Path) -> Environment:
    """Read the facts of this machine and of the git checkout at `repository`."""
    import torch

    from tokenfabric import native

    cpu = _cpu_model()
    isa = native.weave.usable_row_kernels()[0]
    num_cores = len(os.sched_getaffinity(0))
    slug = re.sub(r"[^a-z0-9]+", "-", cpu.lower()).strip("-")
    return Environment(
        machine=f"{slug[:32].rstrip('-')}-{isa.replace('_', '-')}-{num_cores}core",
        cpu=cpu,
        isa=isa,
        num_cores=num_cores,
        governor=_read(Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")) or "unknown",
        memory_gib=round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1),
        kernel=platform.release(),
        python=platform.python_version(),
        torch=torch.__version__,
        commit=_commit(repository),
        date=datetime.datetime.now(datetime.UTC).date().isoformat(),
    )


def write_results(
    directory: Path,
    name: str,
    facts: Environment,
    cells: Iterable[Cell],
    report: Iterable[str],
    *,
    rung: str = "measured on CPU ranks",
) -> str:
    """Write the cells as JSON lines and the report's parts as Markdown.

    Returns:
        Where: for people.
    """
    path = result_path(directory, name, facts)
    write_jsonl(path, facts, cells, rung=rung)
    path.with_suffix(".md").write_text("\n\n".join(report) + "\n")
    return f"wrote {path} and .md"


def result_path(directory: Path, name: str, facts: Environment) -> Path:
    """Return where a benchmark's JSON lines lie."""
    return directory / f"{name}_{facts.machine}_{facts.month}.jsonl"


def read_cells(path: Path, facts: Environment) -> list[Cell]:
    """Return the cells of a result file that were measured here, with the code as it is now."""
    if not path.exists():
        return []
    found = []
    for line in path.read_text().splitlines():
        data = json.loads(line)
        if {**data["environment"], "date": facts.date} != dataclasses.asdict(facts):
            continue
        fields = {field.name: data[field.name] for field in dataclasses.fields(Cell)}
        for name in ("seconds", "speedup"):
            fields[name] = {key: Spread(**value) for key, value in fields[name].items()}
        fields["baseline_again"] = Spread(**fields["baseline_again"])
        found.append(Cell(**fields))
    return found


def write_jsonl(
    path: Path, facts: Environment, cells: Iterable[Cell], *, rung: str = "measured on CPU ranks"
) -> None:
    """Write one line per cell, each with the machine's facts and the kind of evidence it is."""
    head = {"rung": rung, "environment": dataclasses.asdict(facts)}
    lines = [json.dumps({**head, **dataclasses.asdict(cell)}) for cell in cells]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))


def describe_environment(facts: Environment, *, rung: str = "measured on CPU ranks") -> str:
    """One paragraph for the head of a table."""
    return (
        f"{rung}: {facts.cpu} ({facts.isa}), {facts.num_cores} cores, governor {facts.governor}, "
        f"{facts.memory_gib} GiB, Linux {facts.kernel}, Python {facts.python}, "
        f"torch {facts.torch}; commit {facts.commit}, {facts.date}."
    )


def markdown_table(cells: Sequence[Cell], label_names: Sequence[str]) -> str:
    """Table of cells that share a baseline: label columns, times, speedups, A/A.

    A time is the median; a speedup is the median of per-round ratios and its p25-p75. What was
    measured under another name says "= name", what was not measured "-".
    """
    baseline = cells[0].baseline
    names = dict.fromkeys(name for cell in cells for name in cell.seconds)
    others = [name for name in names if name != baseline]
    header = [*label_names, baseline, *others, "A/A", "rounds"]
    rows = [
        [
            *(str(cell.labels[name]) for name in label_names),
            format_seconds(cell.seconds[baseline].median),
            *(_provider_text(cell, name) for name in others),
            format_ratio(cell.baseline_again),
            str(cell.num_rounds),
        ]
        for cell in cells
    ]
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _provider_text(cell: Cell, name: str) -> str:
    if name in cell.same_as:
        return f"= {cell.same_as[name]}"
    if name not in cell.seconds:
        return "-"
    return f"{format_seconds(cell.seconds[name].median)}, {format_ratio(cell.speedup[name])}"


def format_seconds(seconds: float) -> str:
    """Three significant digits with a unit: 0.412 us, 38.1 us, 1.24 ms."""
    for unit, scale in (("us", 1e-6), ("ms", 1e-3)):
        if seconds < 1000 * scale:
            return f"{_significant(seconds / scale)} {unit}"
    return f"{_significant(seconds)} s"


def _significant(value: float) -> str:
    decimals = 0 if value >= 100 else 1 if value >= 10 else 2 if value >= 1 else 3
    return f"{value:.{decimals}f}"


def format_ratio(spread: Spread) -> str:
    """Median with p25-p75: 4.81x (4.60-5.02)."""
    return f"{spread.median:.2f}x ({spread.p25:.2f}-{spread.p75:.2f})"


def _cpu_model() -> str:
    match = re.search(r"^model name\s*:\s*(.+)$", _read(Path("/proc/cpuinfo")), re.MULTILINE)
    return match[1] if match else platform.machine()


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _commit(repository: Path) -> str:
    def git(*args: str) -> Any:
        return subprocess.run(
            ["git", "-C", str(repository), *args], capture_output=True, text=True, check=False
        )

    head = git("rev-parse", "--short=10", "HEAD")
    if head.returncode:
        return "unknown"
    # A benchmark that goes on where it stopped has already changed its own result file.
    code = (":/", ":(top,exclude)benchmarks/results")
    changes = git("status", "--porcelain", "--untracked-files=no", "--", *code).stdout.strip()
    return str(head.stdout.strip()) + ("+changes" if changes else "")
