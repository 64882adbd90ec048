"""What `tokenfabric verify` says loading cost, against the shard plan and against the files."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from launch.recipes.loading import LoadCost, load_share, load_whole
from tests.dist.tiny_checkpoint import write_checkpoint
from tokenfabric.testing.spawn import run_ranks
from tokenfabric.world import World
from tokenweave.shard_plan import ModelDimensions, ShardPlan, plan_shards

HIDDEN, HEAD_DIM, LAYERS = 72, 8, 3
DIMENSIONS = ModelDimensions(
    num_query_heads=9, num_kv_heads=3, intermediate_size=101, vocab_size=131
)
NORM_ELEMS = (2 * LAYERS + 1) * HIDDEN


def planned_elems(plan: ShardPlan, rank: int) -> int:
    """Return how many elements of the tiny model a rank holds: norms whole, the rest as planned."""
    heads = 2 * plan.query_heads[rank].size + 2 * plan.kv_heads[rank].size  # q and o, k and v
    layer = heads * HEAD_DIM * HIDDEN + 3 * plan.mlp_columns[rank].size * HIDDEN
    return LAYERS * layer + 2 * plan.vocab_rows[rank].size * HIDDEN + NORM_ELEMS


def _rank_costs(
    world: World, folder: Path, dtype: torch.dtype
) -> tuple[tuple[LoadCost, ...], LoadCost | None]:
    model, costs = load_share(folder, world, dtype)
    assert model.dtype == dtype
    return costs, load_whole(folder, dtype)[1] if world.rank == 0 else None


@pytest.mark.parametrize(
    ("size", "dtype"), [(1, torch.float32), (2, torch.float32), (2, torch.bfloat16)]
)
def test_bytes_are_the_shard_plans(tmp_path: Path, size: int, dtype: torch.dtype) -> None:
    """Stored bytes of each rank's share, whatever they are converted to; all ranks know them."""
    write_checkpoint(tmp_path)
    file_bytes = sum(t.nbytes for t in load_file(tmp_path / "model.safetensors").values())
    results: list[Any] = run_ranks(_rank_costs, size, tmp_path, dtype)
    costs, whole = results[0]
    assert all(other == costs for other, _ in results)
    plan = plan_shards(DIMENSIONS, size)
    read = [cost.bytes_read for cost in costs]
    assert read == [4 * planned_elems(plan, rank) for rank in range(size)]
    assert sum(read) == file_bytes + (size - 1) * 4 * NORM_ELEMS
    assert whole.bytes_read == file_bytes
    assert all(cost.seconds > 0 for cost in (*costs, whole))


def test_unused_tensors_do_not_count(tmp_path: Path) -> None:
    """What the model does not have is read by nobody."""
    write_checkpoint(tmp_path)
    file = tmp_path / "model.safetensors"
    weights = load_file(file)
    save_file(weights | {"extra": torch.zeros(999)}, file, metadata={"format": "pt"})
    results: list[Any] = run_ranks(_rank_costs, 2, tmp_path, torch.float32)
    costs, whole = results[0]
    plan = plan_shards(DIMENSIONS, 2)
    assert [cost.bytes_read for cost in costs] == [4 * planned_elems(plan, r) for r in range(2)]
    assert whole.bytes_read == sum(tensor.nbytes for tensor in weights.values())
