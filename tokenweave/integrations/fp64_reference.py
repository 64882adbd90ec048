"""A whole model that computes in fp64 throughout, where transformers' modules go through fp32."""

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_ATTENTION = "tokenweave_fp64"


def compute_in_fp64(model: "PreTrainedModel") -> None:
    """Turn `model`, of any supported family, into an fp64 reference for itself. Changes it.

    Norms, routers and capped attention are replaced by modules and functions that keep the dtype of
    what they get; experts and other attention by implementations of torch that do.
    """
    model.double()
    if model._supports_sdpa:
        model.set_attn_implementation("sdpa")
    else:
        # Eager attention masks with the smallest fp64 number, which its fp32 softmax cannot hold.
        AttentionInterface.register(_ATTENTION, _attention)
        AttentionMaskInterface.register(_ATTENTION, _explicit_mask)
        model.set_attn_implementation(_ATTENTION)
    if model._can_set_experts_implementation():
        model.set_experts_implementation("eager")
    for name, module in list(model.named_modules()):
        if type(module).__name__.endswith("RMSNorm"):
            model.set_submodule(name, _RMSNorm(module))
        elif type(module).__name__.endswith("TopKRouter"):
            model.set_submodule(name, _TopKRouter(module))


class _RMSNorm(nn.Module):
    """x * rsqrt(mean(x^2) + eps) * (offset + weight) in the dtype of x."""

    def __init__(self, norm: Any) -> None:
        super().__init__()
        is_gemmas = type(norm).__name__.startswith("Gemma")
        self.weight = norm.weight
        self._offset = 1.0 if is_gemmas else 0.0
        self._eps: float = norm.eps if is_gemmas else norm.variance_epsilon

    def forward(self, x: Tensor) -> Tensor:
        scale = torch.rsqrt(x.square().mean(-1, keepdim=True) + self._eps)
        return x * scale * (self._offset + self.weight)


class _TopKRouter(nn.Module):
    """(logits, weights of the chosen experts, which they are), all tokens as rows."""

    def __init__(self, router: Any) -> None:
        super().__init__()
        self.weight = router.weight
        self._top_k: int = router.top_k
        self._is_normalized: bool = getattr(router, "norm_topk_prob", True)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits = F.linear(x.reshape(-1, x.shape[-1]), self.weight)
        scores, experts = logits.softmax(-1).topk(self._top_k, dim=-1)
        if self._is_normalized:
            scores = scores / scores.sum(-1, keepdim=True)
        return logits, scores, experts


def _attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    *,
    scaling: float,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    key, value = (x.repeat_interleave(module.num_key_value_groups, 1) for x in (key, value))
    scores = query @ key.transpose(-1, -2) * scaling
    if softcap is not None:
        scores = softcap * (scores / softcap).tanh()
    # A row of padding attends to nothing.
    weights = scores.masked_fill(~attention_mask, -torch.inf).softmax(-1).nan_to_num(0.0)
    return (weights @ value).transpose(1, 2), None


def _explicit_mask(*args: Any, **kwargs: Any) -> Tensor:
    """Return the boolean mask that sdpa would leave out where it is causal alone."""
    mask = sdpa_mask(*args, **{**kwargs, "allow_is_causal_skip": False})
    assert isinstance(mask, Tensor)
    return mask
