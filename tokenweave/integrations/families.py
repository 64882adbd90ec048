"""The model families that are known: one line for each."""

from tokenweave.integrations.adapter import ModelAdapter
from tokenweave.integrations.experts import MixtralAdapter, Qwen3MoeAdapter
from tokenweave.integrations.gemma import Gemma2Adapter, Gemma3Adapter
from tokenweave.integrations.llama import LlamaAdapter, MistralAdapter, Qwen2Adapter, Qwen3Adapter
from tokenweave.integrations.phi3 import Phi3Adapter

FAMILIES: tuple[ModelAdapter, ...] = (
    LlamaAdapter(),
    MistralAdapter(),
    Qwen2Adapter(),
    Qwen3Adapter(),
    Gemma2Adapter(),
    Gemma3Adapter(),
    Phi3Adapter(),
    MixtralAdapter(),
    Qwen3MoeAdapter(),
)
