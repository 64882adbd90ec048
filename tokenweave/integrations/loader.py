"""Loads a model so that each rank reads its share only. Models in memory: sharded_model.py."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from tokenfabric.errors import ConfigError
from tokenfabric.log import rank_logger
from tokenfabric.world import World
from tokenweave.config import WeaveConfig
from tokenweave.integrations.adapter import ModelAdapter, adapter_for
from tokenweave.integrations.agreement import (
    agree_on_arithmetic,
    fingerprint,
    prepare_together,
)
from tokenweave.integrations.checkpoint import Checkpoint, StoredTensors
from tokenweave.integrations.handle import LoadReport, Sharding
from tokenweave.integrations.sharded_model import attach, identity, plan_sharding, shard_in_memory

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

_COMPUTED_SUFFIX = ".rotary_emb.inv_freq"
"""Old checkpoints store these; the model computes them from its config."""


def from_pretrained(
    path: str | os.PathLike[str],
    world: World,
    config: WeaveConfig | None = None,
    dtype: torch.dtype | None = None,
    *,
    adapter: ModelAdapter | None = None,
) -> "PreTrainedModel":
    """Load a causal language model over the ranks of `world`. Collective. Nothing is downloaded.

    The result is what `parallelize` returns, in eval mode; `model.tokenweave.load_report` says how
    much this rank read: about 1/size of a safetensors checkpoint, all of a GGUF file.

    Args:
        path: a directory with config.json and safetensors files, the id of a model in the local
            Hugging Face cache, or a .gguf file (read by transformers' own loader, complete on every
            rank before it is sharded).
        world: the ranks.
        config: how to reduce; default WeaveConfig().
        dtype: of the parameters, float32 or bfloat16; default what the checkpoint says, float32 for
            a GGUF file.
        adapter: knows the model's family; default: found by the model's class.

    Raises:
        ConfigError: there is no such checkpoint, or something about it is not supported.
        MismatchError: the ranks loaded different checkpoints or passed different configurations.
    """
    config = WeaveConfig() if config is None else config
    location = Path(path).expanduser()
    if location.suffix == ".gguf":
        return shard_in_memory(
            lambda: _load_gguf(location, dtype),
            world,
            config,
            adapter=adapter,
            operation="from_pretrained",
        )

    def prepare() -> "tuple[tuple[PreTrainedModel, Sharding, LoadReport], int]":
        directory = location if location.is_dir() else _cached_snapshot(str(path))
        model_config = _read_config(directory)
        with Checkpoint(directory) as checkpoint:
            family = adapter or adapter_for(_model_class(model_config))
            stored_dtype = dtype or _stored_dtype(model_config, checkpoint)
            model = _empty_model(model_config, family, stored_dtype)
            sharding = plan_sharding(model, world, family, has_weights=False)
            _read_share(model, sharding, family.stored(checkpoint), world)
            report = LoadReport(
                bytes_read=checkpoint.bytes_read, total_bytes=checkpoint.total_bytes
            )
        _read_generation_config(model, directory)
        replicated = [
            (name, p.data) for name, p in model.named_parameters() if not sharding.shards[name]
        ]
        return (model, sharding, report), fingerprint(
            [*identity(model, config, family), *replicated]
        )

    model, sharding, report = prepare_together(
        world, prepare, operation="from_pretrained", what="checkpoint or config"
    )
    if sharding.adapter.needs_equal_arithmetic:
        agree_on_arithmetic(world, operation="from_pretrained")
    return attach(model, world, config, sharding, report)


def import_model_code(directory: Path) -> None:
    """Import what the model of a checkpoint's directory is built from; the first load waits for it.

    Raises:
        ConfigError: there is no config.json, or it names a model that is not supported.
    """
    _model_class(_read_config(directory))


def _cached_snapshot(model_id: str) -> Path:
    """Return the directory of a model in the local Hugging Face cache."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(model_id, local_files_only=True))
    except (HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise ConfigError(
            f"{model_id!r} is not a directory, not a .gguf file, and not the id of a model in the "
            f"local Hugging Face cache (nothing is downloaded here)"
        ) from error


def _read_config(directory: Path) -> "PreTrainedConfig":
    from transformers import AutoConfig

    if not (directory / "config.json").is_file():
        raise ConfigError(f"{directory} holds no config.json, so it is not a model's directory")
    try:
        model_config: PreTrainedConfig = AutoConfig.from_pretrained(
            directory, local_files_only=True
        )
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"{directory / 'config.json'} cannot be used: {error}") from error
    if getattr(model_config, "quantization_config", None) is not None:
        raise ConfigError(f"{directory} holds a quantized model, which is not supported")
    return model_config


def _stored_dtype(model_config: "PreTrainedConfig", checkpoint: Checkpoint) -> torch.dtype:
    if isinstance(model_config.dtype, torch.dtype):
        return model_config.dtype
    return checkpoint.dtype(checkpoint.names[0])


def _empty_model(
    model_config: "PreTrainedConfig", family: ModelAdapter, dtype: torch.dtype
) -> "PreTrainedModel":
    """Return the model on the meta device, but for the buffers computed from its config."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(model_config, dtype=dtype)
    for name, module in model.named_modules():
        if any(buffer.is_meta for buffer in module.buffers(recurse=False)):
            model.set_submodule(name, family.with_buffers(module, model_config))
    return model.eval()


def _model_class(model_config: "PreTrainedConfig") -> type:
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    model_class: type | None = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(model_config), None)
    if model_class is None:
        raise ConfigError(f"{model_config.model_type!r} has no causal language model")
    return model_class


def _read_share(
    model: "PreTrainedModel", sharding: Sharding, checkpoint: StoredTensors, world: World
) -> None:
    """Give every parameter of `model` this rank's share of it."""
    names_of: dict[nn.Parameter, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names_of.setdefault(parameter, []).append(name)
    _check_complete(names_of, checkpoint, world)
    for parameter, names in names_of.items():
        shard, dtype = sharding.shards[names[0]], parameter.dtype
        # A tied parameter is usually stored once, under either name.
        stored, *also_stored = [name for name in names if name in checkpoint]
        share = checkpoint.read(stored, shard, world.rank, dtype).to(world.device)
        for other in also_stored:
            again = checkpoint.read(other, shard, world.rank, dtype).to(world.device)
            if not torch.equal(share, again):
                raise ConfigError(
                    f"the config ties {stored} and {other}, but the checkpoint holds different "
                    f"values; set tie_word_embeddings to false in config.json"
                )
        # In place, so that all owners of a tied parameter get it.
        torch.utils.swap_tensors(parameter, nn.Parameter(share, requires_grad=False))


def _check_complete(
    names_of: dict[nn.Parameter, list[str]], checkpoint: StoredTensors, world: World
) -> None:
    for parameter, names in names_of.items():
        stored = [name for name in names if name in checkpoint]
        if not stored:
            raise ConfigError(f"the checkpoint lacks {names[0]}")
        for name in stored:
            checkpoint.dtype(name)
            if checkpoint.shape(name) != tuple(parameter.shape):
                raise ConfigError(
                    f"{name} is {checkpoint.shape(name)} in the checkpoint, but "
                    f"{tuple(parameter.shape)} by config.json"
                )
    known = {name for names in names_of.values() for name in names}
    unused = [n for n in checkpoint.names if n not in known and not n.endswith(_COMPUTED_SUFFIX)]
    if unused and world.rank == 0:
        rank_logger(world.rank, world.size).warning(
            "%d tensors of the checkpoint are not in the model and not used: %s, ...",
            len(unused),
            unused[0],
        )


def _read_generation_config(model: "PreTrainedModel", directory: Path) -> None:
    from transformers import GenerationConfig

    if (directory / "generation_config.json").is_file():
        try:
            config = GenerationConfig.from_pretrained(directory, local_files_only=True)
        except (OSError, ValueError) as error:
            raise ConfigError(f"{directory / 'generation_config.json'}: {error}") from error
        model.generation_config = config


def _load_gguf(
    file: Path, dtype: torch.dtype | None
) -> "tuple[PreTrainedModel, LoadReport | None]":
    from transformers import AutoModelForCausalLM, GgufConfig

    if not file.is_file():
        raise ConfigError(f"there is no file {file}")
    try:
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            file.parent,
            gguf_file=file.name,
            dtype=dtype or torch.float32,
            quantization_config=GgufConfig(dequantize=True),
            local_files_only=True,
        )
    except Exception as error:  # whatever transformers, gguf or the file's content come up with
        raise ConfigError(f"transformers cannot load {file}: {error}") from error
    num_bytes = file.stat().st_size
    return model.eval(), LoadReport(bytes_read=num_bytes, total_bytes=num_bytes)
