"""Experts of a checkpoint, stored one by one, as stacked parameters. No files, no ranks."""

import pytest
import torch
from torch import Tensor

from tokenfabric.errors import ConfigError
from tokenweave.integrations.sharding import ParameterShard
from tokenweave.integrations.stored_experts import StoredExperts
from tokenweave.shard_plan import plan_even

NUM_EXPERTS, WIDTH, HIDDEN = 3, 10, 4
MLP = "model.layers.0.mlp"
STORED = "model.layers.0.block_sparse_moe"
PROJECTIONS = {"gate_up_proj": ("w1", "w3"), "down_proj": ("w2",)}


class InMemory:
    """Implements StoredTensors, and counts what is read."""

    def __init__(self, tensors: dict[str, Tensor]):
        self._tensors = tensors
        self.num_read = 0

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._tensors)

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._tensors[name].shape)

    def num_bytes(self, name: str) -> int:
        return self._tensors[name].nbytes

    def dtype(self, name: str) -> torch.dtype:
        return self._tensors[name].dtype

    def read(
        self, name: str, shard: ParameterShard | None, rank: int, dtype: torch.dtype
    ) -> Tensor:
        full = self._tensors[name]
        part = full.clone() if shard is None else shard.take(full, rank)
        self.num_read += part.numel()
        return part.to(dtype)


def mixtrals() -> dict[str, Tensor]:
    """Return the tensors of one MLP as checkpoints of Mixtral have them, in another order."""
    shapes = {"w2": (HIDDEN, WIDTH), "w3": (WIDTH, HIDDEN), "w1": (WIDTH, HIDDEN)}
    tensors = {
        f"{STORED}.experts.{expert}.{name}.weight": torch.randn(shape)
        for expert in reversed(range(NUM_EXPERTS))
        for name, shape in shapes.items()
    }
    return {**tensors, f"{STORED}.gate.weight": torch.randn(NUM_EXPERTS, HIDDEN)}


def stacked(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    def expert(number: int, name: str) -> Tensor:
        return tensors[f"{STORED}.experts.{number}.{name}.weight"]

    numbers = range(NUM_EXPERTS)
    return {
        f"{MLP}.experts.gate_up_proj": torch.stack(
            [torch.cat((expert(e, "w1"), expert(e, "w3"))) for e in numbers]
        ),
        f"{MLP}.experts.down_proj": torch.stack([expert(e, "w2") for e in numbers]),
        f"{MLP}.gate.weight": tensors[f"{STORED}.gate.weight"],
    }


def test_experts_are_one_tensor_of_which_a_rank_reads_its_share() -> None:
    """Names, shapes, sizes and every rank's share are those of the stacked tensors."""
    tensors = mixtrals()
    source = InMemory(tensors)
    stored = StoredExperts(source, PROJECTIONS, stored_mlp="block_sparse_moe")
    expected = stacked(tensors)
    assert sorted(stored.names) == sorted(expected)
    columns = plan_even(WIDTH, 3, what="columns")
    shards = {
        f"{MLP}.experts.gate_up_proj": ParameterShard.along(1, columns, columns),
        f"{MLP}.experts.down_proj": ParameterShard.along(2, columns),
        f"{MLP}.gate.weight": None,
    }
    for name, full in expected.items():
        assert name in stored
        assert stored.shape(name) == tuple(full.shape)
        assert stored.num_bytes(name) == full.nbytes
        assert stored.dtype(name) == torch.float32
        assert torch.equal(stored.read(name, None, 0, torch.float32), full)
        shard = shards[name]
        for rank in range(3):
            source.num_read = 0
            part = stored.read(name, shard, rank, torch.float32)
            assert torch.equal(part, full if shard is None else shard.take(full, rank)), name
            assert source.num_read == part.numel(), "no more than its share"


def test_stacked_experts_are_read_as_they_are() -> None:
    """A checkpoint may hold the model's own parameters."""
    tensors = stacked(mixtrals())
    stored = StoredExperts(InMemory(tensors), PROJECTIONS, stored_mlp="block_sparse_moe")
    assert sorted(stored.names) == sorted(tensors)
    for name, full in tensors.items():
        assert torch.equal(stored.read(name, None, 0, torch.float32), full)


def test_incomplete_experts_are_refused_by_name() -> None:
    """A missing projection, experts of several shapes or dtypes."""
    tensors = mixtrals()
    gone = {k: v for k, v in tensors.items() if not k.endswith("experts.1.w3.weight")}
    with pytest.raises(ConfigError, match=rf"lacks w3 of expert 1 of {MLP}.experts.gate_up_proj"):
        StoredExperts(InMemory(gone), PROJECTIONS, stored_mlp="block_sparse_moe")
    down, name = f"{MLP}.experts.down_proj", f"{STORED}.experts.2.w2.weight"
    for changed, what in ((tensors[name][:, 1:], "shapes"), (tensors[name].bfloat16(), "dtypes")):
        stored = StoredExperts(
            InMemory({**tensors, name: changed}), PROJECTIONS, stored_mlp="block_sparse_moe"
        )
        with pytest.raises(
            ConfigError, match=f"experts of {down} in the checkpoint have diff.*{what}"
        ):
            stored.shape(down), stored.dtype(down)
