"""A causal language model with its loss: what training calls, as one module."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

import tokenring
from tokenring.partition import Layout

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from tokenfabric.world import World


class LanguageModelLoss(nn.Module):
    """The loss inside the module: who shards parameters (FSDP2) has the LM head whole only there.

    Collective over the ring, forward and backward.
    """

    def __init__(self, model: "PreTrainedModel", ring: "World") -> None:
        """Take a model that `tokenring.enable` has prepared for `ring`."""
        super().__init__()
        self.model = model
        self._ring = ring

    def forward(self, input_ids: Tensor, labels: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
        """Return (share, loss) of a row, see `tokenring.token_cross_entropy`.

        Args:
            input_ids, labels: [1, rows of this rank] of `layout`.
            layout: which tokens of the row the ranks hold.
        """
        backbone: Any = self.model.base_model
        hidden = backbone(input_ids=input_ids, ring_layout=layout, use_cache=False)[0]
        head: Any = self.model.get_output_embeddings()
        return tokenring.token_cross_entropy(hidden, head.weight, labels, world=self._ring)


def decayed_and_not(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Return the optimizer's parameter groups: matrices decay, vectors (norms, biases) do not."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    return [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]


def compute_dtype(name: str) -> torch.dtype:
    """Return the dtype that a config's name means."""
    return {"bf16": torch.bfloat16, "fp32": torch.float32}[name]
