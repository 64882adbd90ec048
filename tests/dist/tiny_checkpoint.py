"""A checkpoint directory of a tiny random model whose tokens are characters."""

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from tests.dist.llama_models import ModelCase

_VOCABULARY = 131
_CHAT = "{% for message in messages %}<{{ message['content'] }}>{% endfor %}"


_TINY = ModelCase(name="tiny", dtype=torch.float32)


def write_checkpoint(folder: Path, *, has_chat: bool = True, case: ModelCase = _TINY) -> Path:
    """Save model and tokenizer; token i is the character i."""
    case.model().save_pretrained(folder)
    vocabulary = {chr(i): i for i in range(_VOCABULARY)}
    tokenizer = Tokenizer(BPE(vocabulary, merges=[]))
    tokenizer.decoder = decoders.Fuse()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    fast.chat_template = _CHAT if has_chat else None
    fast.save_pretrained(folder)
    return folder


def write_trainable(folder: Path) -> Path:
    """Make a checkpoint whose tokenizer can end a document."""
    write_checkpoint(folder)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    tokenizer.eos_token = chr(3)
    tokenizer.save_pretrained(folder)
    return folder


def write_unsupported(folder: Path) -> Path:
    """Make a checkpoint of another architecture from a good one's files."""
    write_checkpoint(folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "gpt_neox", "architectures": ["GPTNeoXForCausalLM"]}
    (folder / "config.json").write_text(json.dumps(config))
    return folder
