"""The forward pass of a sharded decoder around its blocks: what transformers' own forward does,
with the layers walked by the executor. The blocks are in blocks.py."""

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import resolve_hidden_states_indices

from tokenfabric.errors import ConfigError
from tokenweave.executor import Executor
from tokenweave.integrations.pass_graphs import PassGraphs
from tokenweave.integrations.refusals import ATTENTIONS_REFUSED, HookWatch
from tokenweave.integrations.split_cache import why_not_cut
from tokenweave.integrations.split_inputs import BlockInputs, cut_inputs
from tokenweave.passes import PARTS, PassShape
from tokenweave.split_plan import SplitPlan

__all__ = ["MASK_FUNCTIONS", "BlockInputs", "DecoderForward"]

# What is the same for every token.
_NOT_CUT = (bool, int, float, str, type(None))

MASK_FUNCTIONS = {
    "full_attention": create_causal_mask,
    "sliding_attention": create_sliding_window_causal_mask,
}


class DecoderForward:
    """Stands in for the forward of a decoder model, with the same signature and outputs.

    Collective: every rank calls with the same inputs. Nothing is communicated before the inputs
    are checked, so that a refused input is refused on every rank.
    """

    def __init__(
        self,
        backbone: Any,
        executor: Executor[BlockInputs],
        graphs: PassGraphs,
        hooks: HookWatch,
        layer_types: Sequence[str],
        num_kv_heads: int,
        rank: int,
    ):
        self._backbone = backbone
        self._executor = executor
        self._graphs = graphs
        # The first layer of each type: all of a type have masks and caches of one shape.
        self._first_layers = {kind: layer_types.index(kind) for kind in set(layer_types)}
        self._num_kv_heads = num_kv_heads
        self._rank = rank
        self._hooks = hooks

    @property
    def config(self) -> Any:
        return self._backbone.config

    @merge_with_config_defaults
    def __call__(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | dict[str, Tensor | None] | None = None,
        position_ids: Tensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast | tuple[Any, ...]:
        """Return what the model's own forward returns.

        Raises:
            ConfigError: the call asks for something that would not come out right.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ConfigError("give exactly one of input_ids and inputs_embeds")
        given = inputs_embeds if input_ids is None else input_ids
        if given is not None and given.numel() == 0:
            raise ConfigError(f"a batch of shape {tuple(given.shape)} has no tokens")
        device = self._backbone.embed_tokens.weight.device
        if given is not None and given.device != device:
            raise ConfigError(f"the batch is on {given.device}, the model on {device}")
        config = self.config
        return_dict = kwargs.pop("return_dict", getattr(config, "return_dict", True))
        output_hidden_states = kwargs.pop("output_hidden_states", config.output_hidden_states)
        # The name that transformers had for it until 5.24, and takes from callers until 5.40.
        cache = kwargs.pop("past_key_values", None) if cache is None else cache
        self._check_call(
            attention_mask,
            cache,
            inputs_embeds,
            output_attentions=kwargs.pop("output_attentions", config.output_attentions),
        )

        if use_cache and cache is None:
            cache = DynamicCache(config=config)
        x_partial = self._embed(input_ids, inputs_embeds)
        if position_ids is None:
            num_past = 0 if cache is None else cache.get_seq_length()
            positions = torch.arange(x_partial.shape[1], device=x_partial.device) + num_past
            position_ids = positions.unsqueeze(0)
        masks = self._masks(x_partial, attention_mask, cache, position_ids)
        inputs = BlockInputs(
            masks=masks,
            position_ids=position_ids,
            position_embeddings=self._backbone.rotary_emb(x_partial, position_ids=position_ids),
            cache=cache,
            attention_kwargs=kwargs,
        )
        keep_hidden = output_hidden_states not in (None, False)
        cuts, why = self._cuts(attention_mask, cache, kwargs)
        num_sequences, num_tokens, hidden = x_partial.shape
        plan = self._executor.reduction.passes.plan(
            PassShape(
                num_sequences=num_sequences,
                num_tokens=num_tokens,
                hidden=hidden,
                dtype=x_partial.dtype,
                num_layers=self._executor.num_blocks // len(PARTS),
                keeps_hidden=keep_hidden,
                cuts=cuts,
                why=why,
            )
        )
        if self._graphs.decide(inputs, plan, keeps_hidden=keep_hidden).may_capture:
            hidden_states: list[Tensor] = []
            normed = self._graphs.run(
                x_partial, inputs, plan, lambda *given: self._walk(*given, plan)[0]
            )
        else:
            normed, hidden_states = self._walk(x_partial, inputs, plan, keep_hidden=keep_hidden)
        output = BaseModelOutputWithPast(last_hidden_state=normed, cache=cache)
        if keep_hidden:
            output["hidden_states"] = self._select(hidden_states, normed, output_hidden_states)
        return output.to_tuple() if return_dict is False else output

    def _walk(
        self, x_partial: Tensor, inputs: BlockInputs, plan: SplitPlan, *, keep_hidden: bool = False
    ) -> tuple[Tensor, list[Tensor]]:
        num_sequences, num_tokens, _ = x_partial.shape
        halves = cut_inputs(inputs, plan, num_sequences, num_tokens, self._first_layers)
        return self._executor.run(x_partial, plan, halves, keep_hidden=keep_hidden)

    def _embed(self, input_ids: Tensor | None, inputs_embeds: Tensor | None) -> Tensor:
        """Return this rank's partial sum of the embeddings, in memory of its own."""
        if inputs_embeds is None:
            x_partial: Tensor = self._backbone.embed_tokens.partial(input_ids)
            return x_partial
        # Given embeddings are complete already: rank 0 contributes its own, the others nothing,
        # so that all ranks go on with the same bits.
        return inputs_embeds.clone() if self._rank == 0 else torch.zeros_like(inputs_embeds)

    def _masks(
        self,
        inputs_embeds: Tensor,
        attention_mask: Tensor | dict[str, Tensor | None] | None,
        cache: Cache | None,
        position_ids: Tensor,
    ) -> dict[str, Any]:
        if isinstance(attention_mask, dict):
            return attention_mask
        return {
            layer_type: MASK_FUNCTIONS[layer_type](
                config=self.config,
                inputs_embeds=inputs_embeds,
                attention_mask=attention_mask,
                cache=cache,
                position_ids=position_ids,
            )
            for layer_type in self._first_layers
        }

    def _cuts(
        self,
        attention_mask: Tensor | dict[str, Tensor | None] | None,
        cache: Cache | None,
        attention_kwargs: dict[str, Any],
    ) -> tuple[Literal["anywhere", "between sequences", "nowhere"], str]:
        """Return where this call's tokens can be split, and why not anywhere."""
        if (why := why_not_cut(cache)) is not None:
            return "nowhere", why
        for name, value in attention_kwargs.items():
            if not isinstance(value, _NOT_CUT):
                return "nowhere", (
                    f"{name} is a {type(value).__name__}, of which it is not known how to cut it"
                )
        if not getattr(self.config, "is_causal", True) or not attention_kwargs.get(
            "is_causal", True
        ):
            return "between sequences", "attention is not causal"
        if any(mask.dim() == 4 for mask in _given_masks(attention_mask)) or isinstance(
            attention_mask, dict
        ):
            return "between sequences", "a given attention mask may let tokens attend to later ones"
        return "anywhere", ""

    def _select(
        self, hidden_states: list[Tensor], normed: Tensor, output_hidden_states: Any
    ) -> tuple[Tensor | None, ...]:
        """Return the hidden states asked for (all, or those of some indices), as transformers does.

        The last one is the output of the last norm unless the config says otherwise.
        """
        if getattr(self.config, "tie_last_hidden_states", None) is not False:
            hidden_states[-1] = normed
        if output_hidden_states is True:
            return tuple(hidden_states)
        asked = output_hidden_states
        asked = [asked] if isinstance(asked, int) else list(asked)
        chosen = resolve_hidden_states_indices(self._backbone, asked, len(hidden_states))
        return tuple(h if i in chosen else None for i, h in enumerate(hidden_states))

    def _check_call(
        self,
        attention_mask: Tensor | dict[str, Tensor | None] | None,
        cache: Cache | None,
        inputs_embeds: Tensor | None,
        *,
        output_attentions: bool | None,
    ) -> None:
        self._hooks.check()
        if self._backbone.training:
            raise ConfigError("the model is in training mode; call model.eval(): inference only")
        if output_attentions:
            raise ConfigError(f"output_attentions is {ATTENTIONS_REFUSED}")
        for mask in _given_masks(attention_mask):
            if mask.dim() == 4 and mask.shape[1] != 1:
                raise ConfigError(
                    f"attention mask of shape {tuple(mask.shape)} has one mask per head, which is "
                    f"not supported: the heads are on several ranks; dimension 1 must be 1"
                )
        if inputs_embeds is not None:
            self._check_embeds(inputs_embeds)
        for layer in getattr(cache, "layers", ())[:1]:
            keys = getattr(layer, "keys", None)
            if keys is not None and keys.dim() == 4 and keys.shape[1] != self._num_kv_heads:
                raise ConfigError(
                    f"the KV cache has {keys.shape[1]} heads, this rank {self._num_kv_heads}: it "
                    f"was filled or initialized outside of this model; pass an empty cache"
                )

    def _check_embeds(self, inputs_embeds: Tensor) -> None:
        weight: Tensor = self._backbone.embed_tokens.weight
        if inputs_embeds.requires_grad and torch.is_grad_enabled():
            raise ConfigError("inputs_embeds requires gradients; inference only")
        if inputs_embeds.dtype != weight.dtype or inputs_embeds.shape[-1] != weight.shape[1]:
            raise ConfigError(
                f"inputs_embeds is {inputs_embeds.dtype} {tuple(inputs_embeds.shape)}; expected "
                f"{weight.dtype} [batch, tokens, {weight.shape[1]}]"
            )


def _given_masks(
    attention_mask: Tensor | dict[str, Tensor | None] | None,
) -> Iterator[Tensor]:
    masks = attention_mask.values() if isinstance(attention_mask, dict) else [attention_mask]
    return (mask for mask in masks if isinstance(mask, Tensor))
