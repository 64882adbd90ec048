"""Turn a GGUF file into a safetensors checkpoint.

transformers reads GGUF by parsing and dequantizing the whole file in every process (14 s and more
for a small model, no part of it shareable); a safetensors copy opens in a moment and lets each rank
read only its share. The weights in the copy are the dequantized values, unrounded up to
`MAX_FP32_BYTES`.
"""

import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from gguf import GGUFReader
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

from tokenfabric.errors import ConfigError

# A larger model is kept in bf16: quantized weights have fewer than its 8 bits of precision anyway,
# and four bytes a weight would not fit next to them.
MAX_FP32_BYTES = 8 << 30


def convert_gguf(source: Path, target: Path) -> list[str]:
    """Write the safetensors checkpoint (weights, config, tokenizer) of a GGUF file.

    Args:
        source: the GGUF file.
        target: a directory; made if it is missing. On an error its content is unspecified.

    Returns:
        What the copy may do differently from the original, as sentences; usually nothing.

    Raises:
        ConfigError: not a GGUF file, an architecture or a quantization that cannot be read, or too
            little disk space, with the figures.
    """
    if find_spec("accelerate") is None:
        # transformers refuses without it. Its own dependencies would bring a torch.
        raise ConfigError("reading GGUF needs accelerate: pip install --no-deps accelerate psutil")
    metadata = _Metadata(source)
    dtype = torch.float32 if metadata.num_weights * 4 <= MAX_FP32_BYTES else torch.bfloat16
    _check_disk_space(target, metadata.num_weights * dtype.itemsize)
    model, tokenizer = _read(source, dtype)
    warnings = restore_pre_tokenizer(tokenizer, metadata.pre_tokenizer)
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
    return warnings


class _Metadata:
    """What is needed of a GGUF file's head."""

    def __init__(self, source: Path) -> None:
        try:
            reader = GGUFReader(source)
        except ValueError as error:
            raise ConfigError(f"{source} cannot be read as GGUF: {error}") from None
        self.num_weights = sum(int(tensor.n_elements) for tensor in reader.tensors)
        field = reader.fields.get("tokenizer.ggml.pre")
        self.pre_tokenizer = "" if field is None else str(field.contents())


def _check_disk_space(target: Path, num_bytes: int) -> None:
    target.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(target).free
    if free < num_bytes:
        raise ConfigError(
            f"the converted copy needs {num_bytes / 1e9:.1f} GB in {target.parent}, where "
            f"{free / 1e9:.1f} GB are free: make room, or set TOKENFABRIC_CACHE_DIR"
        )


def _read(source: Path, dtype: torch.dtype) -> tuple[Any, Any]:
    folder, name = str(source.parent), source.name
    try:
        model = AutoModelForCausalLM.from_pretrained(
            folder,
            gguf_file=name,
            dtype=dtype,
            # Otherwise the model remembers being quantized and refuses to be saved.
            quantization_config=GgufConfig(dequantize=True),
        )
        tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name)
    except (ValueError, KeyError, NotImplementedError) as error:
        raise ConfigError(f"transformers cannot read {source}: {error}") from error
    return model, tokenizer


def restore_pre_tokenizer(tokenizer: Any, name: str) -> list[str]:
    """Split text before BPE as the GGUF file says; transformers always splits like GPT-2.

    Args:
        tokenizer: changed in place if the file's way is known and another one.
        name: the file's `tokenizer.ggml.pre`, "" if it has none.

    Returns:
        A warning if the file's way is not known.
    """
    if name == "smollm":
        # Digits one by one, before the rest: "a  1" is "a", two spaces, "1".
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
            ]
        )
        return []
    if name in ("", "default", "gpt-2"):
        return []
    return [
        f"the file asks for the pre-tokenizer {name!r}, which is not known here: some texts may be "
        "split into other tokens than the original model's"
    ]
