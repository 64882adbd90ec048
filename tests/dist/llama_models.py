"""Tiny random models of the Llama family, their inputs, and what an unsharded model makes of them.

Head counts, widths and vocabularies are odd on purpose: 2, 3 and 4 ranks divide none of them.
"""

import copy
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

PAD = 0
_CLASSES: dict[str, tuple[Any, Any]] = {
    "llama": (LlamaConfig, LlamaForCausalLM),
    "mistral": (MistralConfig, MistralForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
}
_SIZES = {
    "hidden_size": 72,
    "intermediate_size": 101,
    "num_hidden_layers": 3,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 131,
    "max_position_embeddings": 512,
    "pad_token_id": PAD,
    "bos_token_id": 1,
    "eos_token_id": None,
}
_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelCase:
    """A model and the inputs it is compared on."""

    name: str
    family: Literal["llama", "mistral", "qwen2"] = "llama"
    config: dict[str, Any] = field(default_factory=dict)
    dtype: torch.dtype = torch.float32
    batch: int = 3
    tokens: int = 11

    def __str__(self) -> str:
        return self.name

    @property
    def num_query_heads(self) -> int:
        heads: int = {**_SIZES, **self.config}["num_attention_heads"]
        return heads

    def model(self, seed: int = 0) -> PreTrainedModel:
        """Return the complete model, in eval mode; the same for the same seed."""
        config_class, model_class = _CLASSES[self.family]
        torch.manual_seed(seed)
        model: PreTrainedModel = model_class(config_class(**{**_SIZES, **self.config}))
        for name, parameter in model.named_parameters():
            # Large enough that logits spread: a greedy choice is then no matter of rounding.
            center = 1.0 if "norm" in name else 0.0
            nn.init.normal_(parameter, mean=center, std=0.3)
        return model.to(self.dtype).eval()

    def inputs(self) -> dict[str, Tensor]:
        """Return left-padded token ids and their mask, [batch, tokens]; row 0 is unpadded."""
        generator = torch.Generator().manual_seed(1)
        ids = torch.randint(3, 131, (self.batch, self.tokens), generator=generator)
        mask = torch.ones_like(ids)
        for row in range(1, self.batch):
            ids[row, : 2 * row + 1] = PAD
            mask[row, : 2 * row + 1] = 0
        return {"input_ids": ids, "attention_mask": mask}


CASES = [
    ModelCase(name="smollm2-like", config={"tie_word_embeddings": True}),
    ModelCase(name="untied-unbatched", batch=1),
    ModelCase(name="biases", config={"attention_bias": True, "mlp_bias": True}),
    ModelCase(
        name="multi-query-eager",
        config={
            "num_attention_heads": 4,
            "num_key_value_heads": 1,
            "attn_implementation": "eager",
        },
    ),
    ModelCase(
        name="multi-head-llama3-rope",
        config={
            "num_attention_heads": 6,
            "num_key_value_heads": 6,
            "rope_parameters": _LLAMA3_ROPE,
        },
    ),
    ModelCase(
        name="wide-heads-dynamic-rope",
        config={
            "head_dim": 16,
            "max_position_embeddings": 16,
            "rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0},
        },
    ),
    # More than 64 KiB of partial sums: two-shot reductions with a row-sharded residual.
    ModelCase(name="long-prompt", batch=2, tokens=151, config={"attention_bias": True}),
    ModelCase(name="mistral-full", family="mistral", config={"sliding_window": None}),
    ModelCase(name="mistral-sliding", family="mistral", config={"sliding_window": 4}),
    ModelCase(name="qwen2", family="qwen2", config={"tie_word_embeddings": True}),
    ModelCase(
        name="qwen2-mixed-windows",
        family="qwen2",
        config={"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
    ),
    ModelCase(name="bf16", dtype=torch.bfloat16, config={"tie_word_embeddings": True}),
    ModelCase(name="bf16-long-prompt", dtype=torch.bfloat16, batch=2, tokens=301),
]

SMOLLM2_LIKE = CASES[0]


class _Fp64Norm(nn.Module):
    def __init__(self, norm: Any):
        super().__init__()
        self.weight, self.eps = norm.weight, norm.variance_epsilon

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps)


def in_fp64(model: PreTrainedModel) -> PreTrainedModel:
    """Return a copy of `model` that computes in fp64 what transformers computes in fp32 at most."""
    model = copy.deepcopy(model).double()
    # Eager attention masks with the smallest fp64 number, which its fp32 softmax cannot hold.
    model.set_attn_implementation("sdpa")
    for name, module in list(model.named_modules()):
        if type(module).__name__.endswith("RMSNorm"):
            model.set_submodule(name, _Fp64Norm(module))
    return model


def is_attended(inputs: dict[str, Tensor]) -> Tensor:
    """Return which positions are no padding, bool [batch, tokens]; other outputs mean nothing."""
    return inputs["attention_mask"].bool()
