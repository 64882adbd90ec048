"""What the layers of an enabled model call instead of their own attention and mask functions."""

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from tokenfabric.errors import ConfigError
from tokenring.attention import ring_attention
from tokenring.decode import ring_decode, ring_prefill
from tokenring.integrations.inputs import RingCall, check_mask

if TYPE_CHECKING:
    from tokenfabric.world import World

# What other attention functions of transformers take, and this one would get wrong in silence.
_REFUSED = ("position_bias", "cu_seq_lens_q", "cu_seq_lens_k", "cache", "block_indices")


class RingAttention:
    """The attention and mask functions of one model, as transformers' interfaces call them."""

    def __init__(self, world: "World", *, strategy: str, deterministic: bool) -> None:
        """Args as `enable`."""
        self._world = world
        self._how: dict[str, Any] = {"strategy": strategy, "deterministic": deterministic}

    def attend(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        scaling: float | None = None,
        dropout: float = 0.0,
        sliding_window: int | None = None,
        softcap: float | None = None,
        s_aux: Tensor | None = None,
        ring_call: RingCall | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, None]:
        """Return ([batch, rows, heads, head_dim], None). Collective.

        Args:
            module: the attention layer; its layer_idx counts in the cache.
            query: [batch, heads_q, rows, head_dim], this rank's tokens.
            key: [batch, heads_kv, rows, head_dim].
            value: the same.
            attention_mask: None: see `mask`.
            scaling: of the scores.
            dropout: 0.
            sliding_window: how many keys a query sees, its own among them.
            softcap: of the scores.
            s_aux: sinks, [heads_q].
            ring_call: what `prepare_call` put among the backbone's arguments.
            kwargs: of other attention functions.

        Raises:
            ConfigError: something asked for is not computed; and see `ring_attention`.
        """
        self._refuse(attention_mask, dropout, ring_call, kwargs)
        assert ring_call is not None
        q, k, v = (x.transpose(1, 2) for x in (query, key, value))
        terms: dict[str, Any] = {
            "world": self._world,
            "scale": scaling,
            "window": sliding_window,
            "softcap": softcap,
            "sinks": s_aux,
        }
        layer: Any = module.layer_idx
        cache, layout = ring_call.cache, ring_call.layout
        if cache is None:
            return ring_attention(q, k, v, causal=True, layout=layout, **terms, **self._how), None
        if layout is not None:
            return ring_prefill(
                q, k, v, cache, layout=layout, layer=layer, **terms, **self._how
            ), None
        cache.append_replicated(k, v, layer)
        return ring_decode(q, cache, layer=layer, **terms), None

    def mask(self, *args: Any, attention_mask: Tensor | None = None, **kwargs: Any) -> None:
        """Return no mask: causality and window follow from positions.

        Raises:
            ConfigError: tokens are masked out.
        """
        check_mask(attention_mask)

    def _refuse(
        self,
        attention_mask: Tensor | None,
        dropout: float,
        ring_call: RingCall | None,
        kwargs: dict[str, Any],
    ) -> None:
        if ring_call is None:
            raise ConfigError(
                "a layer was called without its model's forward, which says whose tokens these "
                "are: call the model, or tokenring.disable(model)"
            )
        check_mask(attention_mask)
        if dropout > 0.0:
            raise ConfigError(
                f"attention dropout {dropout} is not supported: set config.attention_dropout and "
                "the layers' attention_dropout to 0, or call model.eval()"
            )
        for name in _REFUSED:
            if kwargs.get(name) is not None:
                raise ConfigError(f"{name} is not supported with sharded tokens: leave it out")
