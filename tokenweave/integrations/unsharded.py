"""The same checkpoint without sharding: its tokenizer, and the whole model in one process.

The whole model is what a sharded one is measured and checked against.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from tokenfabric.errors import ConfigError
from tokenweave.integrations.fp64_reference import compute_in_fp64

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
        with no_progress_bar():
            model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
                directory, dtype=dtype, local_files_only=True
            )
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ConfigError(f"{directory} holds no model that can be read: {error}") from error
    return model.eval()


def load_reference(directory: Path, dtype: torch.dtype) -> "PreTrainedModel":
    """Return the whole model with weights rounded to `dtype`, computing in higher precision.

    bf16 weights compute in fp32, fp32 weights in fp64: see fp64_reference.py.

    Args:
        directory: with config.json and safetensors files.
        dtype: bfloat16 or float32.

    Raises:
        ConfigError: it cannot be read.
    """
    model = load_unsharded(directory, dtype)
    if dtype == torch.bfloat16:
        return model.float()
    compute_in_fp64(model)
    return model


@contextmanager
def no_progress_bar() -> Iterator[None]:
    """Keep transformers from drawing bars on stderr: what a process does is said by its caller."""
    had_one = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if had_one:
            transformers_logging.enable_progress_bar()
