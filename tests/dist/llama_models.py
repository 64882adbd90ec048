"""Tiny random models of all families, their inputs, and what an unsharded model makes of them.

Head counts, widths and vocabularies are odd on purpose: 2, 3 and 4 ranks divide none of them.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import PreTrainedModel

PAD = 0
_PREFIXES = {
    "llama": "Llama",
    "mistral": "Mistral",
    "qwen2": "Qwen2",
    "qwen3": "Qwen3",
    "gemma2": "Gemma2",
    "gemma3": "Gemma3",
    "phi3": "Phi3",
    "mixtral": "Mixtral",
    "qwen3_moe": "Qwen3Moe",
    "arcee": "Arcee",
}
"""Of the families' classes in transformers, which imports those that are asked for."""
_CONFIGS = {"gemma3": "Gemma3TextConfig"}
"""Names of config classes that are not <prefix>Config."""
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
    family: str = "llama"
    """A key of _PREFIXES."""
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
        prefix = _PREFIXES[self.family]
        config_class = getattr(transformers, _CONFIGS.get(self.family, f"{prefix}Config"))
        model_class = getattr(transformers, f"{prefix}ForCausalLM")
        torch.manual_seed(seed)
        model: PreTrainedModel = model_class(config_class(**{**_SIZES, **self.config}))
        # Gemma stores w of (1 + w).
        norm_center = 0.0 if self.family.startswith("gemma") else 1.0
        for name, parameter in model.named_parameters():
            # Large enough that logits spread: a greedy choice is then no matter of rounding.
            center = norm_center if "norm" in name else 0.0
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

_GEMMA = {
    "head_dim": 16,
    "query_pre_attn_scalar": 16,
    "sliding_window": 4,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
}
_MIXTRAL = {"num_local_experts": 5, "num_experts_per_tok": 2, "intermediate_size": 40}
_QWEN3_MOE = {
    "num_experts": 4,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 24,
    "mlp_only_layers": [1],
}
# In bf16 two experts can change places by rounding alone, in the unsharded model too; with all of
# them chosen, what is compared is the arithmetic.
_ALL_EXPERTS = {"num_local_experts": 3, "num_experts_per_tok": 3, "intermediate_size": 64}

FAMILY_CASES = [
    SMOLLM2_LIKE,
    CASES[8],
    CASES[10],
    ModelCase(
        name="qwen3",
        family="qwen3",
        config={
            "head_dim": 16,
            "attention_bias": True,
            "use_sliding_window": True,
            "sliding_window": 4,
            "max_window_layers": 1,
        },
    ),
    ModelCase(name="gemma2", family="gemma2", config={**_GEMMA, "final_logit_softcapping": 20.0}),
    ModelCase(name="gemma3", family="gemma3", config={**_GEMMA, "final_logit_softcapping": 20.0}),
    ModelCase(
        name="phi3", family="phi3", config={"sliding_window": 4, "tie_word_embeddings": True}
    ),
    ModelCase(name="mixtral", family="mixtral", config=_MIXTRAL),
    ModelCase(name="qwen3-moe", family="qwen3_moe", config={**_QWEN3_MOE, "norm_topk_prob": True}),
]
"""One of each family; several kinds of layers where a family has them."""

ALL_CASES = [
    *CASES,
    *FAMILY_CASES[3:],
    ModelCase(
        name="gemma3-long-bf16",
        family="gemma3",
        config=_GEMMA,
        dtype=torch.bfloat16,
        batch=2,
        tokens=151,
    ),
    ModelCase(
        name="gemma2-uncapped",
        family="gemma2",
        config={
            **_GEMMA,
            "attn_logit_softcapping": None,
            "final_logit_softcapping": None,
            "attention_bias": True,
            "num_attention_heads": 4,
            "num_key_value_heads": 1,
        },
    ),
    ModelCase(
        name="phi3-partial-rotary-bf16",
        family="phi3",
        dtype=torch.bfloat16,
        config={
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e4,
                "partial_rotary_factor": 0.5,
            }
        },
    ),
    # The rotary tables change at the ninth position, which generate() reaches: it then fills the
    # cache anew.
    ModelCase(
        name="phi3-longrope",
        family="phi3",
        batch=2,
        tokens=6,
        config={
            "original_max_position_embeddings": 8,
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 1e4,
                "short_factor": [1.0, 1.1, 1.2, 1.3],
                "long_factor": [1.0, 2.0, 3.0, 4.0],
            },
        },
    ),
    ModelCase(name="mixtral-bf16", family="mixtral", dtype=torch.bfloat16, config=_ALL_EXPERTS),
    ModelCase(
        name="mixtral-eager-experts",
        family="mixtral",
        config={
            **_MIXTRAL,
            "intermediate_size": 37,
            "sliding_window": 4,
            "experts_implementation": "eager",
        },
        tokens=151,
        batch=2,
    ),
    ModelCase(
        name="qwen3-moe-unnormalized",
        family="qwen3_moe",
        config={**_QWEN3_MOE, "mlp_only_layers": [], "head_dim": 16, "attention_bias": True},
    ),
]


def is_attended(inputs: dict[str, Tensor]) -> Tensor:
    """Return which positions are no padding, bool [batch, tokens]; other outputs mean nothing."""
    return inputs["attention_mask"].bool()
