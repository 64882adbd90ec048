"""The byte table of docs/ring.md is what plans count."""

import re
from pathlib import Path

from tokenring.plan import plan_attention

PAGE = Path(__file__).resolve().parents[2] / "docs" / "ring.md"


def most_megabytes(heads_q: int, heads_kv: int, strategy: str, direction: str) -> int:
    plan = plan_attention(
        world_size=8,
        tokens=65536,
        partition="zigzag",
        causal=True,
        heads_q=heads_q,
        heads_kv=heads_kv,
        head_dim=128,
        strategy=strategy,
        direction=direction,  # type: ignore[arg-type]  # one of the two
    )
    return round(max(plan.bytes_sent(rank) for rank in range(8)) / 1e6)


def test_the_byte_table_is_what_plans_count() -> None:
    rows = re.findall(r"^\| (\d+) : (\d+) \|(.*)\|$", PAGE.read_text(), re.MULTILINE)
    assert len(rows) == 5
    for heads_q, heads_kv, cells in rows:
        expected = [
            most_megabytes(int(heads_q), int(heads_kv), strategy, direction)
            for direction in ("forward", "backward")
            for strategy in ("kv_push", "q_push")
        ]
        assert [int(cell) for cell in cells.split("|")] == expected
