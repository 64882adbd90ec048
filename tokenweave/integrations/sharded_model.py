"""Turns a Hugging Face model into this rank's share of it, and back.

Reading only a share of a checkpoint is in loader.py; what is refused in refusals.py and decoder.py.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

from torch import Tensor

from tokenfabric.errors import ConfigError
from tokenfabric.log import rank_logger
from tokenfabric.world import World
from tokenweave.config import WeaveConfig
from tokenweave.integrations.adapter import ModelAdapter, adapter_for, check_adapter
from tokenweave.integrations.agreement import (
    agree_on_arithmetic,
    fingerprint,
    prepare_together,
)
from tokenweave.integrations.generation import attach_generation
from tokenweave.integrations.handle import LoadReport, Sharding, WeaveHandle
from tokenweave.integrations.patches import Patches
from tokenweave.integrations.refusals import check_model
from tokenweave.reduction import make_reduction
from tokenweave.shard_plan import plan_shards

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def parallelize(
    model: "PreTrainedModel",
    world: World,
    config: WeaveConfig | None = None,
    *,
    adapter: ModelAdapter | None = None,
) -> "PreTrainedModel":
    """Shard `model` over the ranks of `world` and make it run there. Collective.

    Every rank passes the same complete model in eval mode; each keeps its share and frees the
    rest. Afterwards forward and generate() have the signatures and results they had before, and
    are collective; `model.tokenweave` is the WeaveHandle. Parameters no longer require gradients.

    Args:
        model: <family>ForCausalLM or <family>Model of transformers, where family is Llama, Mistral,
            Qwen2, Qwen3, Gemma2, Gemma3 (text), Phi3, Mixtral or Qwen3Moe; all parameters fp32 or
            all bf16, on the CPU or on the world's GPU. Each rank's share goes to its GPU.
        world: the ranks; any number up to the model's query heads.
        config: how to reduce; default WeaveConfig().
        adapter: knows the model's family; default: found by the model's class.

    Returns:
        The same object.

    Raises:
        ConfigError: something about the model is not supported. No weight has been touched then,
            on any rank.
        MismatchError: the ranks passed different models or configurations; as above.
    """
    return shard_in_memory(
        lambda: (model, None), world, config, adapter=adapter, operation="parallelize"
    )


def shard_in_memory(
    load: "Callable[[], tuple[PreTrainedModel, LoadReport | None]]",
    world: World,
    config: WeaveConfig | None,
    *,
    adapter: ModelAdapter | None,
    operation: str,
) -> "PreTrainedModel":
    """Shard the complete model that `load` returns. Collective; errors as `parallelize`."""
    config = WeaveConfig() if config is None else config

    def prepare() -> "tuple[tuple[PreTrainedModel, LoadReport | None, Sharding], int]":
        model, report = load()
        sharding = plan_sharding(model, world, adapter, has_weights=True)
        same = identity(model, config, sharding.adapter)
        samples = ((name, _sample(p.data)) for name, p in model.named_parameters())
        return (model, report, sharding), fingerprint([*same, *samples])

    model, report, sharding = prepare_together(
        world, prepare, operation=operation, what="model or config"
    )
    if sharding.adapter.needs_equal_arithmetic:
        agree_on_arithmetic(world, operation=operation)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(False)
        if (shard := sharding.shards[name]) is not None:
            # Each goes to its GPU before the next is cut.
            parameter.data = shard.take(parameter.data, world.rank).to(world.device)
    return attach(model, world, config, sharding, report)


def identity(
    model: "PreTrainedModel", config: WeaveConfig, adapter: ModelAdapter
) -> list[tuple[str, object]]:
    """Return what must be the same on all ranks besides the weights, for a fingerprint."""
    # Names with an underscore say where a model came from, not what it computes.
    values = {k: v for k, v in model.config.to_dict().items() if not k.startswith("_")}
    return [
        ("config", config),
        ("model", values),
        ("attention", model.config._attn_implementation),
        ("experts", model.config._experts_implementation),
        ("adapter", type(adapter).__name__),
    ]


def plan_sharding(
    model: "PreTrainedModel", world: World, adapter: ModelAdapter | None, *, has_weights: bool
) -> Sharding:
    """Check everything about `model` and decide how it is cut. Touches nothing.

    Args:
        model: with complete weights, or on the meta device.
        world: the ranks.
        adapter: knows the model's family; None: found by the model's class.
        has_weights: whether the weights are there.

    Raises:
        ConfigError: something is not supported.
    """
    if is_parallelized(model):
        raise ConfigError("the model is parallelized already; call tokenweave.restore(model) first")
    if adapter is None:
        adapter = adapter_for(type(model))
    check_adapter(adapter, type(model))
    check_model(model, world, adapter.hookable(model), has_weights=has_weights)
    adapter.check(model)
    plan = plan_shards(adapter.dimensions(model), world.size)
    shards = adapter.parameter_shards(model, plan)
    for name, parameter in model.named_parameters():
        if name not in shards:
            raise ConfigError(f"the model has a parameter that its architecture has not: {name}")
        shard = shards[name]
        if shard is not None and parameter.shape[shard.dim] != shard.extent:
            raise ConfigError(
                f"{name} has shape {tuple(parameter.shape)}, but model.config says "
                f"{shard.extent} along dimension {shard.dim}"
            )
    requires_grad = {name: p.requires_grad for name, p in model.named_parameters()}
    home = next(model.parameters()).device if has_weights else world.device
    return Sharding(
        adapter=adapter, plan=plan, shards=shards, requires_grad=requires_grad, home=home
    )


def attach(
    model: "PreTrainedModel",
    world: World,
    config: WeaveConfig,
    sharding: Sharding,
    load_report: LoadReport | None = None,
) -> "PreTrainedModel":
    """Make `model`, whose parameters are this rank's share already, run over the ranks."""
    model.to(world.device)
    patches = Patches()
    reduction = make_reduction(config, world)
    reduction.passes.know(model.config.to_dict(), type(model).__name__)
    stats = sharding.adapter.attach(model, sharding.plan, world, reduction, patches)
    attach_generation(model, world, patches)
    handle = WeaveHandle(
        world=world,
        config=config,
        sharding=sharding,
        load_report=load_report,
        communication=stats,
        passes=reduction.passes,
        patches=patches,
    )
    patches.set(model, "tokenweave", handle)
    logger = rank_logger(world.rank, world.size)
    logger.info("%s with %s; %s", type(model).__name__, config, sharding.plan.of_rank(world.rank))
    if config.reduction == "none":
        logger.warning("reduction='none': no communication, so all results are wrong")
    return model


def restore(model: "PreTrainedModel") -> "PreTrainedModel":
    """Undo `parallelize` or `from_pretrained`: the complete model on every rank. Collective.

    Weights, modules, methods and requires_grad flags are what they were, the weights bit for bit
    (replicated KV heads come from their first rank), on the device where they were. The model then
    works alone. Needs the memory of the complete model there, and of its largest parameter twice.

    Returns:
        The same object.

    Raises:
        ConfigError: the model is not parallelized.
    """
    handle = getattr(model, "tokenweave", None)
    if not isinstance(handle, WeaveHandle):
        raise ConfigError("the model is not parallelized, there is nothing to restore")
    shards, world = handle.sharding.shards, handle.world
    # Everything is gathered before anything is changed: after an error the model is as before.
    complete: dict[str, Tensor] = {
        name: shard.gather(parameter.data, world).to(handle.sharding.home)
        for name, parameter in model.named_parameters()
        if (shard := shards[name]) is not None
    }
    for name, parameter in model.named_parameters():
        if name in complete:
            parameter.data = complete.pop(name)
        parameter.requires_grad_(handle.sharding.requires_grad[name])
    handle.patches.undo()
    model.to(handle.sharding.home)
    return model


def is_parallelized(model: object) -> bool:
    """Tell whether `model` runs over the ranks of a world now."""
    return isinstance(getattr(model, "tokenweave", None), WeaveHandle)


def _sample(parameter: Tensor) -> Tensor:
    """Return a few rows: enough to notice other weights, little enough to hash at once."""
    return parameter[:: max(1, parameter.shape[0] // 4)]
