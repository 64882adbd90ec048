"""`model.tokenweave`: what a parallelized model says about itself."""

from dataclasses import dataclass

import torch

from tokenfabric.world import World
from tokenweave.config import WeaveConfig
from tokenweave.executor import CommunicationStats
from tokenweave.integrations.adapter import ModelAdapter
from tokenweave.integrations.patches import Patches
from tokenweave.integrations.sharding import ParameterShards
from tokenweave.passes import Passes
from tokenweave.shard_plan import ShardPlan


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadReport:
    """What this rank read from a checkpoint."""

    bytes_read: int
    """Bytes of the tensors, or parts of tensors, that this rank took from the files."""
    total_bytes: int
    """Bytes of all tensors in the files."""

    @property
    def share(self) -> float:
        """The fraction of the checkpoint that this rank read."""
        return self.bytes_read / self.total_bytes if self.total_bytes else 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Sharding:
    """How a model was cut."""

    adapter: ModelAdapter
    plan: ShardPlan
    shards: ParameterShards
    requires_grad: dict[str, bool]
    """The flag of every parameter before it was frozen."""
    home: torch.device
    """Where the parameters were, and where `restore` puts them back."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class WeaveHandle:
    """The tensor-parallel state of one model, from `parallelize` until `restore`."""

    world: World
    config: WeaveConfig
    sharding: Sharding
    load_report: LoadReport | None
    """None when the model was in memory already."""
    communication: CommunicationStats
    passes: Passes
    """How forward passes are planned and run; `passes.asked` changes it for a while."""
    patches: Patches

    @property
    def plan(self) -> ShardPlan:
        """Who holds what; `.explain()` says it in words."""
        return self.sharding.plan

    def stats(self) -> dict[str, int | float]:
        """Return this rank's counts and seconds since the last `reset_stats`.

        Keys: `num_reductions`, `reduction_s` (all-reduce + norm, waiting for slower ranks
        included; on GPUs launching alone), `num_gathers`, `gather_s` (logits), `num_replays`
        (passes that were CUDA graphs).
        """
        counted = self.communication
        return {
            "num_reductions": counted.num_reductions,
            "reduction_s": counted.reduction_s,
            "num_gathers": counted.num_gathers,
            "gather_s": counted.gather_s,
            "num_replays": counted.num_replays,
        }

    def reset_stats(self) -> None:
        """Start counting from zero."""
        self.communication.reset()
