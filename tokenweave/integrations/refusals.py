"""What is refused by name before any weight of a model is touched. What a family adds to it is in
its adapter."""

from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING

import torch
from torch import nn

from tokenfabric.errors import ConfigError
from tokenfabric.world import World

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ATTENTIONS_REFUSED = "not supported: the attention heads are on several ranks"
_DTYPES = (torch.float32, torch.bfloat16)
_CAPTURE_HOOKS = "transformers.utils.output_capturing"
"""Module of the hooks that transformers itself leaves on layers; without effect outside its own
forward."""


def check_model(
    model: "PreTrainedModel",
    world: World,
    exempt: Collection[nn.Module],
    *,
    has_weights: bool = True,
) -> None:
    """Raise ConfigError, naming it, for what no family supports.

    Args:
        model: the model to be sharded.
        world: the ranks it is to run on.
        exempt: modules that may have forward hooks: they are still called as before.
        has_weights: False for a model on the meta device whose shards are yet to be read.
    """
    if model.training:
        raise ConfigError("the model is in training mode; call model.eval(): inference only")
    if getattr(model.config, "output_attentions", False):
        raise ConfigError(f"config.output_attentions is {ATTENTIONS_REFUSED}")
    for name, module in model.named_modules():
        where = name or type(model).__name__
        if "forward" in vars(module) or hasattr(module, "_hf_hook"):
            raise ConfigError(
                f"the forward of {where} has been replaced (device_map hooks, kernels or another "
                f"library); load the model without it"
            )
        if module._compiled_call_impl is not None:
            raise ConfigError(f"{where} is compiled, which is not supported; use it uncompiled")
    _check_parameters(model, world, has_weights=has_weights)
    check_hooks(model, exempt)


def _check_parameters(model: "PreTrainedModel", world: World, *, has_weights: bool) -> None:
    for name, parameter in model.named_parameters():
        # A subclass computes otherwise than its shape and dtype say, or has parts beside it.
        if type(parameter) is not nn.Parameter:
            kind = type(parameter)
            raise ConfigError(
                f"{name} is a {kind.__module__}.{kind.__qualname__}, not a plain parameter: "
                f"quantized weights are not supported; load the model without quantization"
            )
    dtypes = {p.dtype for p in model.parameters()}
    if len(dtypes) != 1 or not dtypes <= set(_DTYPES):
        found = ", ".join(sorted(str(dtype) for dtype in dtypes))
        raise ConfigError(
            f"the parameters are {found}; all must be torch.float32 or all torch.bfloat16"
        )
    devices = {p.device for p in model.parameters()}
    # Each rank then moves its share to its GPU, where the whole model need not fit.
    is_there = len(devices) == 1 and devices <= {world.device, torch.device("cpu")}
    if has_weights and not is_there:
        there = "on the CPU" if world.cuda is None else f"on the CPU or on {world.device}"
        raise ConfigError(
            f"the parameters are on {', '.join(sorted(map(str, devices)))}, the world on "
            f"{world.device}; load the model {there}, without device_map or offloading"
        )


def check_hooks(root: nn.Module, exempt: Collection[nn.Module]) -> None:
    """Raise ConfigError, naming the module, when one under `root` has a forward hook.

    On a module whose inputs and outputs are no longer those of the whole model, a hook would be
    skipped, see one rank's share, or change a partial sum once per rank.
    """
    for name, module in _watched(root, exempt):
        hooks = (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
        if any(getattr(hook, "__module__", None) != _CAPTURE_HOOKS for hook in hooks):
            raise ConfigError(
                f"{name} has a forward hook, which would not see what it expects on a sharded "
                f"model; remove it, or put it on the model itself"
            )


class HookWatch:
    """Notices hooks that come after the model was sharded, at a few microseconds a call."""

    def __init__(self, root: nn.Module, exempt: Collection[nn.Module]) -> None:
        """Watch all modules under `root` but the exempt ones."""
        self._root = root
        self._exempt = exempt
        # A module fills and empties its hook dictionaries in place, so they can be held here.
        modules = [module for _, module in _watched(root, exempt)]
        self._hooks = [m._forward_hooks for m in modules] + [m._forward_pre_hooks for m in modules]
        self._num_known = sum(map(len, self._hooks))

    def check(self) -> None:
        """Raise ConfigError, naming the module, when one has got a hook."""
        if sum(map(len, self._hooks)) != self._num_known:
            check_hooks(self._root, self._exempt)


def _watched(root: nn.Module, exempt: Collection[nn.Module]) -> Iterator[tuple[str, nn.Module]]:
    return ((name, m) for name, m in root.named_modules() if all(m is not e for e in exempt))
