"""The same checkpoint without sharding: its tokenizer, and the whole model in one process.

The whole model is what a sharded one is measured and checked against.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from tokenfabric.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def load_tokenizer(directory: Path) -> "PreTrainedTokenizerBase":
    """Return the tokenizer of a checkpoint's directory. Nothing is downloaded.

    Raises:
        ConfigError: there is none, or it cannot be read.
    """
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            directory, local_files_only=True
        )
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ConfigError(f"{directory} holds no tokenizer that can be read: {error}") from error
    return tokenizer


def load_unsharded(directory: Path, dtype: torch.dtype) -> "PreTrainedModel":
    """Return the whole model of a checkpoint's directory, in eval mode, on the CPU.

    Args:
        directory: with config.json and safetensors files.
        dtype: of the parameters; stored values are rounded to it.

    Raises:
        ConfigError: it cannot be read.
    """
    try:
        with _no_progress_bar():
            model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
                directory, dtype=dtype, local_files_only=True
            )
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ConfigError(f"{directory} holds no model that can be read: {error}") from error
    return model.eval()


def load_reference(directory: Path, dtype: torch.dtype) -> "PreTrainedModel":
    """Return the whole model with weights rounded to `dtype`, computing in higher precision.

    bf16 weights compute in fp32, fp32 weights in fp64. For fp64 the RMSNorms are replaced:
    transformers' own go through fp32 in every precision.

    Args:
        directory: with config.json and safetensors files.
        dtype: bfloat16 or float32.

    Raises:
        ConfigError: it cannot be read.
    """
    wider = {torch.bfloat16: torch.float32, torch.float32: torch.float64}[dtype]
    model = load_unsharded(directory, dtype).to(wider)
    if wider == torch.float64:
        for name, module in list(model.named_modules()):
            if hasattr(module, "variance_epsilon"):
                model.set_submodule(name, _WideRMSNorm(module))
    return model


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    had_one = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if had_one:
            transformers_logging.enable_progress_bar()


class _WideRMSNorm(nn.Module):
    """x * rsqrt(mean(x^2) + eps) * weight in the dtype of x."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.weight = norm.weight
        self._eps: float = norm.variance_epsilon

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self._eps) * self.weight
