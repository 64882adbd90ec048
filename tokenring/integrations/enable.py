"""Turn a Hugging Face model's attention into attention over sharded tokens, and back."""

import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch.distributed as dist
from torch import nn
from torch.utils.hooks import RemovableHandle
from transformers import AttentionInterface, AttentionMaskInterface

from tokenfabric.errors import ConfigError
from tokenring.integrations.attention import RingAttention
from tokenring.integrations.inputs import prepare_call

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from tokenfabric.world import World

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma2", "gpt_oss")
"""Values of config.model_type: decoders whose tokens meet in attention and nowhere else, and whose
attention functions are told window, softcap and sinks."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class RingHandle:
    """`model.tokenring`: the state of one model, from `enable` until `disable`."""

    world: "World"
    name: str
    """Under which the functions are registered with transformers."""
    previous: str | None
    """The attention implementation before."""
    hooks: tuple[RemovableHandle, ...]


def enable(
    model: "PreTrainedModel",
    world: "World",
    *,
    strategy: str = "auto",
    deterministic: bool = False,
) -> "PreTrainedModel":
    """Make a decoder compute on this rank's tokens, exactly as on all of them. Not collective.

    Every rank has the whole model, and calls it with its own tokens and their positions:

        ids = tokenring.shard(input_ids, world=world)
        positions = tokenring.position_ids(layout, world.rank)
        hidden = model.model(input_ids=ids, position_ids=positions).last_hidden_state
        share, loss = tokenring.token_cross_entropy(hidden, model.lm_head.weight, labels, ...)

    Such calls are collective, and so are their backwards. The gradient of each parameter is this
    rank's share: their sum over the ranks is the gradient of a single process. Instead of
    position_ids, ring_layout= says which tokens these are (needed for packed documents), and with
    ring_cache=, a `RingCache`, prompts and new tokens are kept; integrations/inputs.py lists the
    forms. Gradient checkpointing works. Padding, past_key_values, labels, dropout and
    output_attentions are refused by name when the model is called.

    A model that is dealt by heads (tokenweave.parallelize) can be enabled after that: then `world`
    has the ranks with the same heads, one of each tensor-parallel group, and all ranks of such a
    group pass the same tokens.

    Args:
        model: of one of the families; changed in place.
        world: the ranks that share the tokens.
        strategy: of `ring_attention`.
        deterministic: of `ring_attention`.

    Returns:
        The model, with `model.tokenring`.

    Raises:
        ConfigError: the model is of another family, already enabled, bidirectional, compiled, or
            not on the world's device. It is as it was then.
    """
    base = _checked(model, world)
    functions = RingAttention(world, strategy=strategy, deterministic=deterministic)
    name = f"tokenring-{id(functions):x}"
    AttentionInterface.register(name, functions.attend)
    AttentionMaskInterface.register(name, functions.mask)
    names = list(inspect.signature(base.forward).parameters)

    def before_backbone(
        _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        by_name = dict(zip(names, args, strict=False))
        return (), prepare_call(world, {**by_name, **kwargs})

    hooks = [base.register_forward_pre_hook(before_backbone, with_kwargs=True)]
    if base is not model:
        hooks.append(model.register_forward_pre_hook(_refuse_labels, with_kwargs=True))
    config: Any = model.config
    handle = RingHandle(
        world=world, name=name, previous=config._attn_implementation, hooks=tuple(hooks)
    )
    config._attn_implementation = name
    model.tokenring = handle  # type: ignore[assignment]
    return model


def disable(model: "PreTrainedModel") -> "PreTrainedModel":
    """Undo `enable`: the model computes as before. Not collective.

    Args:
        model: an enabled one.

    Returns:
        The model.

    Raises:
        ConfigError: it is not enabled.
    """
    handle = getattr(model, "tokenring", None)
    if not isinstance(handle, RingHandle):
        raise ConfigError(f"{type(model).__name__} is not enabled: nothing to undo")
    config: Any = model.config
    config._attn_implementation = handle.previous
    for hook in handle.hooks:
        hook.remove()
    for interface in (AttentionInterface, AttentionMaskInterface):
        interface._global_mapping.pop(handle.name, None)
    del model.tokenring
    return model


def _checked(model: "PreTrainedModel", world: "World") -> "PreTrainedModel":
    """Refuse a model by name; return its backbone."""
    config: Any = getattr(model, "config", None)
    family = getattr(config, "model_type", type(model).__name__)
    if family not in FAMILIES:
        raise ConfigError(
            f"models of type {family!r} are not supported; supported: {', '.join(FAMILIES)}"
        )
    if hasattr(model, "tokenring"):
        raise ConfigError("the model is already enabled: call tokenring.disable first")
    _check_ranks(model, world)
    if not getattr(config, "is_causal", True):
        raise ConfigError("config.is_causal is False: only causal models are supported")
    if getattr(config, "output_attentions", False):
        raise ConfigError("config.output_attentions is not supported: no rank sees all scores")
    for name, module in model.named_modules():
        if module._compiled_call_impl is not None:
            raise ConfigError(f"{name or 'the model'} is compiled: enable it before compiling")
    devices = sorted({parameter.device.type for parameter in model.parameters()})
    if devices != [world.device.type]:
        raise ConfigError(
            f"the parameters are on {', '.join(devices)}, the world on {world.device.type}"
        )
    if world.device.type != "cpu":
        raise ConfigError(
            "models on GPUs are not supported in this version: call tokenring.ring_attention in "
            "a model of your own, or use a world on CPUs"
        )
    base: PreTrainedModel = model.base_model
    return base


def _check_ranks(model: "PreTrainedModel", world: "World") -> None:
    """Refuse a ring of ranks that hold different heads of a model: what they would exchange are not
    each other's tokens.
    """
    handle = getattr(model, "tokenweave", None)
    if handle is None or handle.world.size == 1 or world.size == 1:
        return
    heads, tokens = (dist.get_process_group_ranks(it.group) for it in (handle.world, world))
    if len(shared := sorted(set(heads) & set(tokens))) > 1:
        raise ConfigError(
            f"ranks {', '.join(map(str, shared))} share the model's heads and cannot share its "
            "tokens as well: pass a world with one rank of each tensor-parallel group, such as the "
            "other axis of a mesh"
        )


def _refuse_labels(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    if kwargs.get("labels") is not None:
        raise ConfigError(
            "labels would be shifted within this rank's tokens: take tokenring.shard_labels and "
            "tokenring.token_cross_entropy"
        )
