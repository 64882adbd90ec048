"""Llama, Mistral, Qwen2 and Qwen3: what decoder.py says, and which mask each layer reads."""

from typing import TYPE_CHECKING

from tokenweave.integrations.blocks import SplitAttention
from tokenweave.integrations.decoder import DecoderAdapter

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


def full_or_sliding(config: "PreTrainedConfig") -> list[str]:
    """Return the layer types of a model whose layers all have a sliding window, or none."""
    kind = "full_attention" if config.sliding_window is None else "sliding_attention"
    return [kind] * config.num_hidden_layers


class LlamaAdapter(DecoderAdapter):
    """Implements ModelAdapter."""

    prefix = "Llama"


class MistralAdapter(DecoderAdapter):
    """Implements ModelAdapter."""

    prefix = "Mistral"

    def layer_types(self, config: "PreTrainedConfig") -> list[str]:
        return full_or_sliding(config)


class Qwen2Adapter(DecoderAdapter):
    """Implements ModelAdapter. Biases of q, k and v are cut with their rows."""

    prefix = "Qwen2"

    def layer_types(self, config: "PreTrainedConfig") -> list[str]:
        return list(config.layer_types)


class Qwen3Adapter(Qwen2Adapter):
    """Implements ModelAdapter. Each head of q and k is normalized; all heads share the weight."""

    prefix = "Qwen3"
    attention = SplitAttention("q_norm", "k_norm")
