"""The trained model as plain transformers loads it."""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

import tokenring
from launch.training.trainer import Trainer
from tokenweave.integrations.unsharded import no_progress_bar

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_PREFIX = "model."  # of LanguageModelLoss


def export_model(
    trainer: Trainer, tokenizer: "PreTrainedTokenizerBase", folder: Path, dtype: torch.dtype
) -> None:
    """Write a folder for `from_pretrained`: safetensors, config, tokenizer. Collective.

    The folder is complete or as it was before. Ends the trainer's use: the model is disabled.
    """
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    weights = get_model_state_dict(trainer.loss, options=options)
    model = tokenring.disable(trainer.model)
    if dist.get_rank() == 0:
        unfinished = folder.with_name(folder.name + ".unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        model.config.dtype = dtype
        named = {
            name.removeprefix(_PREFIX): x.to(dtype)  # type: ignore[union-attr]
            for name, x in weights.items()
        }
        with no_progress_bar():
            model.save_pretrained(unfinished, state_dict=named)
        tokenizer.save_pretrained(unfinished)
        shutil.rmtree(folder, ignore_errors=True)
        unfinished.rename(folder)
    dist.barrier()
