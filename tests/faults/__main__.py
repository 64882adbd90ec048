"""`make fault-matrix`: every case once, about 15 minutes.

Writes benchmarks/results/fault_matrix_<machine>_<month>.md, and what it is made of, row by row.
Words choose cases whose rows are made again: `make fault-matrix ARGS=raylet`. Exit code 1 where a
case did not end as it must.
"""

import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.faults.cases import CASES, Case
from tests.faults.runner import CHECKPOINT_EVERY, STEPS, Bench, Outcome, run_case
from tests.faults.verdict import problems
from tests.house.tree import ROOT
from tokenfabric.testing.bench_report import Environment, environment

_INTRODUCTION = """\
Each row is a job that was disturbed once, on {env.cpu}, {env.num_cores} cores shared by all its
ranks, Python {env.python}, torch {env.torch}, commit {env.commit}, {env.date} (measured on CPU
ranks: real processes, real kills, real raylets; the machine was not quiet). The model is tiny: the
times are those of noticing, ending and starting again, not of computing.

*known after*: from the kill until every surviving rank had raised or ended. *over after*: until the
launcher ended, for a run that goes on with all its {steps} steps. *again*: steps that had been done
and were done again; checkpoints come every {every} steps and are named one or two steps later.
*loss*: last loss against the undisturbed run of one rank, relative. No case left a process running
or a checkpoint that is not whole, or its row says so.

Again: `make fault-matrix` (the cases are in tests/faults/cases.py).
"""
_COLUMNS = ("killed", "in", "launcher", "ranks", "known after", "over after", "exit code", "again",
            "loss", "the user reads", "verdict")  # fmt: skip


def main() -> int:
    """Run the cases that words choose, or all; return the exit code."""
    asked = sys.argv[1:]
    cases = [case for case in CASES if not asked or any(word in str(case) for word in asked)]
    env = environment(ROOT)
    page = ROOT / "benchmarks" / "results" / f"fault_matrix_{env.machine}_{env.month}.md"
    record = page.with_suffix(".jsonl")
    if not asked:
        record.unlink(missing_ok=True)
    is_right = True
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench.make(Path(folder))
        for number, case in enumerate(cases, start=1):
            started_s = time.monotonic()
            try:
                outcome = run_case(case, bench)
                fields, wrong = asdict(outcome), problems(case, outcome)
            except Exception as error:  # the other cases are worth their results
                fields, wrong = None, [f"{type(error).__name__}: {error}"]
            is_right = is_right and not wrong
            seconds = time.monotonic() - started_s
            sys.stderr.write(
                f"{number}/{len(cases)} {case}: {'; '.join(wrong) or 'pass'} ({seconds:.0f} s)\n"
            )
            row = {"case": str(case), "commit": env.commit, "outcome": fields, "problems": wrong}
            with record.open("a") as file:
                file.write(json.dumps(row) + "\n")
            page.write_text(_page(env, record))
    return 0 if is_right else 1


def _page(env: Environment, record: Path) -> str:
    """Return the page of all cases on record, the last result of each."""
    on_record = {row["case"]: row for row in map(json.loads, record.read_text().splitlines())}
    rows = [_cells(case, on_record[str(case)]) for case in CASES if str(case) in on_record]
    introduction = _INTRODUCTION.format(env=env, steps=STEPS, every=CHECKPOINT_EVERY)
    missing = [str(case) for case in CASES if str(case) not in on_record]
    left_out = f"\nNot run: {'; '.join(missing)}.\n" if missing else ""
    return f"# What happens when something dies\n\n{introduction}\n{_table(rows)}{left_out}"


def _cells(case: Case, row: dict[str, Any]) -> tuple[str, ...]:
    what = (case.what, case.where, case.launcher, str(case.ranks))
    verdict = "; ".join(row["problems"]).replace("\n", " ")[:200] or "pass"
    if row["outcome"] is None:
        return (*what, *("",) * 6, verdict)
    outcome = Outcome(**row["outcome"])
    return (
        *what,
        f"{outcome.knew_s:.2f} s",
        f"{outcome.ended_s:.1f} s",
        str(outcome.code),
        "" if outcome.steps_lost is None else str(outcome.steps_lost),
        "" if outcome.loss_difference is None else f"{outcome.loss_difference:.0e}",
        f"`{outcome.said[:160]}`" if outcome.said else "",
        verdict,
    )


def _table(rows: Sequence[Sequence[str]]) -> str:
    head = [" | ".join(_COLUMNS), " | ".join("---" for _ in _COLUMNS)]
    lines = [*head, *(" | ".join(cell.replace("|", "/") for cell in row) for row in rows)]
    return "".join(f"| {line} |\n" for line in lines)


if __name__ == "__main__":
    sys.exit(main())
