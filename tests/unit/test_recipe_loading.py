"""The figures of a load: memory of this process, sums over ranks, and how they are shown."""

from pathlib import Path

import pytest
import torch

from launch.recipes.loading import (
    LoadCost,
    loading_rows,
    loading_table,
    proportional_bytes,
    total,
)

SIZE = 64 << 20


def cost(read: int, seconds: float, memory: int | None) -> LoadCost:
    """Return a cost."""
    return LoadCost(bytes_read=read, seconds=seconds, memory_bytes=memory)


def test_memory_in_use_is_seen() -> None:
    """Touched pages count, and go away with the tensor."""
    before = proportional_bytes()
    if before is None:
        pytest.skip("this kernel has no smaps_rollup")
    block = torch.ones(SIZE, dtype=torch.uint8)
    grown = proportional_bytes()
    assert grown is not None
    assert 0.9 * SIZE < grown - before < 1.5 * SIZE
    del block
    after = proportional_bytes()
    assert after is not None
    assert after < grown - 0.9 * SIZE


def test_kernel_that_does_not_tell(tmp_path: Path) -> None:
    """No figure rather than a wrong one."""
    assert proportional_bytes(tmp_path / "nowhere") is None
    (tmp_path / "rollup").write_text("Rss: 9 kB\nPss_Dirty: 1 kB\nPss: 7 kB\nSwap: 0 kB\n")
    assert proportional_bytes(tmp_path / "rollup") == 7 << 10


def test_ranks_load_side_by_side() -> None:
    """Bytes and memory add up, the slowest rank is waited for; what is unknown stays unknown."""
    assert total((cost(3, 0.5, 10), cost(4, 0.25, 20))) == cost(7, 0.5, 30)
    assert total((cost(3, 0.5, 10), cost(4, 0.25, None))) == cost(7, 0.5, None)


def test_table_sets_ranks_beside_the_whole_model() -> None:
    """Shares are of the whole model's bytes; one rank needs no sum."""
    whole = cost(2_000_000, 1.0, 5_000_000)
    rows = loading_rows("fp32", (cost(1_500_000, 0.5, None), cost(1_000_000, 0.6, 900)), whole)
    assert [row[1:4] for row in rows] == [
        ("rank 0", "1.5 MB", "75%"),
        ("rank 1", "1.0 MB", "50%"),
        ("all ranks", "2.5 MB", "125%"),
        ("one process, unsharded", "2.0 MB", "100%"),
    ]
    assert [row[5] for row in rows] == ["not known", "0.9 kB", "not known", "5.0 MB"]
    assert len(loading_rows("fp32", (whole,), whole)) == 2
    assert loading_table(rows).rows == tuple(rows)
