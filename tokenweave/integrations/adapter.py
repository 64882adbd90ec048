"""What tokenweave must know about a model family. The families it knows are in families.py."""

from typing import TYPE_CHECKING, ClassVar, Protocol

from torch import nn

from tokenfabric.errors import ConfigError
from tokenfabric.world import World
from tokenweave.executor import CommunicationStats
from tokenweave.integrations.checkpoint import StoredTensors
from tokenweave.integrations.patches import Patches
from tokenweave.integrations.sharding import ParameterShards
from tokenweave.reduction import Reduction
from tokenweave.shard_plan import ModelDimensions, ShardPlan

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel


class ModelAdapter(Protocol):
    """Knows the modules of one model family; decoder.py implements it for most."""

    needs_equal_arithmetic: ClassVar[bool]
    """Whether ranks take decisions that must be the same, each for itself, from equal numbers."""

    @property
    def module(self) -> str:
        """The module that defines the family's classes."""
        ...

    @property
    def model_classes(self) -> tuple[str, ...]:
        """Names of the classes of models that the adapter knows."""
        ...

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

    def with_buffers(self, module: nn.Module, config: "PreTrainedConfig") -> nn.Module:
        """Return what `module`, with buffers on the meta device, is with those of its config."""
        ...

    def stored(self, tensors: StoredTensors) -> StoredTensors:
        """Return a checkpoint's tensors under the names of the model's parameters.

        Raises:
            ConfigError: one of several tensors that make up a parameter is missing.
        """
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


def check_adapter(adapter: ModelAdapter, model_class: type) -> None:
    """Raise ConfigError when `adapter` is for other models than those of a class."""
    if not _knows(adapter, model_class):
        raise ConfigError(
            f"{type(adapter).__name__} is for {', '.join(adapter.model_classes)} of "
            f"{adapter.module}, not for {model_class.__module__}.{model_class.__name__}"
        )


def _knows(adapter: ModelAdapter, model_class: type) -> bool:
    is_own_module = model_class.__module__ == adapter.module
    return is_own_module and model_class.__name__ in adapter.model_classes


def adapter_for(model_class: type) -> ModelAdapter:
    """Return the adapter for a model class of transformers.

    Raises:
        ConfigError: no adapter knows the class.
    """
    from tokenweave.integrations.families import FAMILIES

    for family in FAMILIES:
        if _knows(family, model_class):
            return family
    known = ", ".join(name for family in FAMILIES for name in family.model_classes)
    raise ConfigError(
        f"{model_class.__module__}.{model_class.__name__} is not a supported architecture; "
        f"supported: {known} of transformers"
    )
