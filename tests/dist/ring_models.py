"""Tiny models and tokens for the tests of models on sharded tokens."""

import torch
from torch import Tensor

from tests.dist.llama_models import ModelCase

CASES = [
    ModelCase(name="llama", config={"tie_word_embeddings": True, "num_hidden_layers": 2}),
    ModelCase(
        name="mistral-sliding",
        family="mistral",
        config={"sliding_window": 4, "num_hidden_layers": 2},
    ),
    ModelCase(
        name="qwen2-mixed-windows",
        family="qwen2",
        config={
            "use_sliding_window": True,
            "sliding_window": 4,
            "max_window_layers": 1,
            "num_hidden_layers": 2,
        },
    ),
]


def tokens_of(num_tokens: int, batch: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(num_tokens)
    return torch.randint(3, 131, (batch, num_tokens), generator=generator)
