"""What tokenweave must know about a model family, and the families it knows.

To add one: write an adapter beside llama.py and name its model classes in `adapter_for`.
"""

from typing import TYPE_CHECKING, Protocol

from torch import nn

from tokenfabric.errors import ConfigError
from tokenfabric.world import World
from tokenweave.executor import CommunicationStats
from tokenweave.integrations.patches import Patches
from tokenweave.integrations.sharding import ParameterShards
from tokenweave.reduction import Reduction
from tokenweave.shard_plan import ModelDimensions, ShardPlan

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class ModelAdapter(Protocol):
    """Knows the modules of one model family."""

    def hookable(self, model: "PreTrainedModel") -> tuple[nn.Module, ...]:
        """Return the modules that are called as before, with what they were called with before."""
        ...

    def check(self, model: "PreTrainedModel") -> None:
        """Raise ConfigError, naming it, for what would not come out right with this model."""
        ...

    def dimensions(self, model: "PreTrainedModel") -> ModelDimensions:
        """Return what decides how the model is dealt."""
        ...

    def parameter_shards(self, model: "PreTrainedModel", plan: ShardPlan) -> ParameterShards:
        """Return the cut of every parameter that the adapter knows, by name."""
        ...

    def attach(
        self,
        model: "PreTrainedModel",
        plan: ShardPlan,
        world: World,
        reduction: Reduction,
        patches: Patches,
    ) -> CommunicationStats:
        """Make the model, whose parameters are cut already, run over the ranks.

        Every change to the model is made through `patches`. Returns the counters of its reductions.
        """
        ...


def adapter_for(model_class: type) -> ModelAdapter:
    """Return the adapter for a model class of transformers.

    Raises:
        ConfigError: no adapter knows the class.
    """
    from tokenweave.integrations.llama import FAMILIES, LlamaAdapter

    for family in FAMILIES:
        is_own_module = model_class.__module__ == family.module
        if is_own_module and model_class.__name__ in family.model_classes:
            return LlamaAdapter(family)
    known = ", ".join(name for family in FAMILIES for name in family.model_classes)
    raise ConfigError(
        f"{model_class.__module__}.{model_class.__name__} is not a supported architecture; "
        f"supported: {known} of transformers"
    )
