"""Timelines as Chrome trace events, which Perfetto and chrome://tracing draw. Pure: JSON text only.

One row for each resource, with its stages, and one below it with their kernels where they are
known. Times are microseconds from the start.
"""

import json
from typing import Any

from tokenfabric.timeline import Timeline, is_communication_stage


def trace_json(timeline: Timeline, name: str) -> str:
    """Return the text of a trace file.

    Args:
        timeline: what ran when, simulated or measured.
        name: of the process that the rows are shown under.
    """
    rows: dict[str, int] = {}
    events: list[dict[str, Any]] = [
        {"ph": "M", "pid": 0, "name": "process_name", "args": {"name": name}}
    ]
    for span in timeline.spans:
        stage = span.stage
        row = _row(stage.resource, rows, events)
        category = "communication" if is_communication_stage(stage) else "computation"
        events.append(
            _event(stage.op, category, row, span.start_s, span.end_s)
            | {"args": {"bytes": stage.num_bytes, "flops": stage.flops}}
        )
        for kernel in span.kernels:
            row = _row(f"{stage.resource}: kernels", rows, events)
            events.append(_event(kernel.name, "kernel", row, kernel.start_s, kernel.end_s))
    return json.dumps(
        {
            "traceEvents": events,
            "displayTimeUnit": "ms",
            "otherData": {
                "makespan_s": timeline.makespan_s,
                "communication_s": timeline.communication_s,
                "exposed_s": timeline.exposed_s,
                "overlap_ratio": timeline.overlap_ratio,
            },
        }
    )


def _row(name: str, rows: dict[str, int], events: list[dict[str, Any]]) -> int:
    if name not in rows:
        rows[name] = len(rows)
        about = {"ph": "M", "pid": 0, "tid": rows[name]}
        events.append(about | {"name": "thread_name", "args": {"name": name}})
        events.append(about | {"name": "thread_sort_index", "args": {"sort_index": rows[name]}})
    return rows[name]


def _event(name: str, category: str, row: int, start_s: float, end_s: float) -> dict[str, Any]:
    return {
        "ph": "X",
        "pid": 0,
        "tid": row,
        "name": name,
        "cat": category,
        "ts": start_s * 1e6,
        "dur": (end_s - start_s) * 1e6,
    }
