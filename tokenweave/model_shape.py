"""The sizes of a decoder that decide what its layers cost. Pure: from a Hugging Face config dict.

Llama, Mistral, Qwen2, Qwen3, Gemma 1 to 3, Phi-3, Mixtral and Qwen3-MoE; what one rank holds of a
model is the largest share that shard_plan.py deals.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tokenfabric.errors import ConfigError
from tokenweave.shard_plan import ModelDimensions, plan_shards

_DENSE = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi3")
_EXPERTS = {
    "mixtral": ("num_local_experts", "intermediate_size"),
    "qwen3_moe": ("num_experts", "moe_intermediate_size"),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelShape:
    """A decoder of equal layers: attention with rotary positions and a gated MLP."""

    name: str
    num_layers: int
    hidden: int
    num_query_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate: int
    """Of the MLP, or of one expert."""
    vocab: int
    num_experts: int = 0
    """0: a dense MLP."""
    experts_per_token: int = 0
    windows: tuple[tuple[int | None, int], ...] = ()
    """(keys that a query sees, None for all; number of such layers); () for all keys everywhere."""

    def __post_init__(self) -> None:
        for name in ("num_layers", "hidden", "num_query_heads", "num_kv_heads", "head_dim",
                     "intermediate", "vocab"):  # fmt: skip
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} of {self.name} is {getattr(self, name)}: at least 1")
        if not 0 <= self.experts_per_token <= self.num_experts:
            raise ConfigError(
                f"{self.name} routes each token to {self.experts_per_token} of "
                f"{self.num_experts} experts"
            )

    @classmethod
    def from_config(cls, config: Mapping[str, Any], name: str = "") -> "ModelShape":
        """Return the shape of the model that a config.json, as a dict, describes.

        Args:
            config: what the file holds; fields beside the sizes are ignored.
            name: what to call the model; its model_type if empty.

        Raises:
            ConfigError: the model_type is not known, or a size is missing or no positive integer.
        """
        if isinstance(config.get("text_config"), Mapping):
            config = config["text_config"]
        kind = config.get("model_type")
        if kind not in _DENSE and kind not in _EXPERTS:
            known = ", ".join((*_DENSE, *_EXPERTS))
            raise ConfigError(f"model_type {kind!r} is not known here; known: {known}")
        experts, width = _EXPERTS.get(str(kind), ("", "intermediate_size"))
        num_layers = _size(config, "num_hidden_layers")
        heads, hidden = _size(config, "num_attention_heads"), _size(config, "hidden_size")
        has_head_dim = config.get("head_dim") is not None
        return cls(
            name=name or str(kind),
            num_layers=num_layers,
            hidden=hidden,
            num_query_heads=heads,
            num_kv_heads=_size(config, "num_key_value_heads", heads),
            head_dim=_size(config, "head_dim") if has_head_dim else max(1, hidden // heads),
            intermediate=_size(config, width),
            vocab=_size(config, "vocab_size"),
            num_experts=_size(config, experts) if experts else 0,
            experts_per_token=_size(config, "num_experts_per_tok") if experts else 0,
            windows=_windows(config, num_layers),
        )

    def largest_share(self, world_size: int) -> "RankShare":
        """Return what the rank with the most work holds.

        Raises:
            ConfigError: the model cannot be dealt to so many ranks.
        """
        plan = plan_shards(
            ModelDimensions(
                num_query_heads=self.num_query_heads,
                num_kv_heads=self.num_kv_heads,
                intermediate_size=self.intermediate,
                vocab_size=self.vocab,
            ),
            world_size,
        )
        return RankShare(
            query_columns=max(span.size for span in plan.query_heads) * self.head_dim,
            kv_columns=max(span.size for span in plan.kv_heads) * self.head_dim,
            intermediate=max(span.size for span in plan.mlp_columns),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class RankShare:
    """Columns of the weights on one rank."""

    query_columns: int
    kv_columns: int
    """Of the keys; as many of the values."""
    intermediate: int


def _size(config: Mapping[str, Any], key: str, default: int | None = None) -> int:
    value = config.get(key, default)
    if value is None and default is not None:
        return default
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigError(f"{key} of the model's config is {value!r}: a positive integer is needed")
    return value


def _windows(config: Mapping[str, Any], num_layers: int) -> tuple[tuple[int | None, int], ...]:
    window = config.get("sliding_window")
    # Qwen2 and Qwen3 name a window that use_sliding_window turns off.
    if not isinstance(window, int) or config.get("use_sliding_window") is False:
        return ()
    kinds = config.get("layer_types")
    if not isinstance(kinds, list | tuple):
        # What transformers derives: Gemma 2 alternates, every sixth layer of Gemma 3 sees all.
        period = {"gemma2": 2, "gemma3_text": 6}.get(str(config.get("model_type")), 0)
        period = config.get("sliding_window_pattern") or period
        kinds = [
            "full_attention" if period and (layer + 1) % period == 0 else "sliding_attention"
            for layer in range(num_layers)
        ]
    counts = Counter(window if kind == "sliding_attention" else None for kind in kinds)
    return tuple(counts.items())
