"""An enabled model's answer to one prompt: prompt and cache are sharded over the ranks."""

from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor
from transformers import TemperatureLogitsWarper, TopPLogitsWarper

from tokenfabric.errors import ConfigError
from tokenring.cache import RingCache
from tokenring.exchange import gather_rows
from tokenring.integrations.enable import RingHandle
from tokenring.partition import Partition, partition_tokens
from tokenring.sharding import shard

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from tokenfabric.world import World


class Streamer(Protocol):
    """Gets the prompt, then each token, as those of transformers do."""

    def put(self, value: Tensor) -> None: ...
    def end(self) -> None: ...


@torch.no_grad()
def generate(
    model: "PreTrainedModel",
    prompt_ids: Tensor,
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_p: float = 1.0,
    partition: Partition = "zigzag",
    streamer: Streamer | None = None,
    everyone: "World | None" = None,
) -> tuple[Tensor, RingCache]:
    """Return the prompt with the model's answer, the same on all ranks. Collective.

    The tokens of the prompt are sharded, the new ones run on every rank; the cache is sharded all
    along. Tokens are chosen on rank 0 of `everyone`, with its random state.

    Args:
        model: enabled (`tokenring.enable`), in eval mode.
        prompt_ids: [1, tokens] int64, the same on all ranks.
        max_new_tokens: longest answer; it ends earlier at the model's end-of-sequence tokens.
        temperature: 0 takes the likeliest token, above 0 samples.
        top_p: sample from this share of the probability.
        partition: of the prompt.
        streamer: gets the tokens as they come, on this rank.
        everyone: all ranks that answer together, where the model's is one of several rings with
            different heads; default: the ring.

    Returns:
        [1, tokens + new] int64, and the cache.

    Raises:
        ConfigError: the model is not enabled, or the prompt is no [1, tokens].
        MismatchError, PeerLostError, CommTimeoutError: see `tokenfabric.errors`.
    """
    handle = getattr(model, "tokenring", None)
    if not isinstance(handle, RingHandle):
        raise ConfigError("the model is not enabled: call tokenring.enable(model, world)")
    if prompt_ids.dim() != 2 or prompt_ids.shape[0] != 1 or not prompt_ids.shape[1]:
        raise ConfigError(f"the prompt must be [1, tokens], got {tuple(prompt_ids.shape)}")
    world = handle.world
    if streamer is not None:
        streamer.put(prompt_ids)
    config: Any = model.config
    num_tokens = prompt_ids.shape[1]
    cache = RingCache(
        world,
        num_layers=config.num_hidden_layers,
        capacity_tokens=num_tokens + max_new_tokens,
    )
    logits = _prefill(model, world, prompt_ids, cache, partition)
    ends = _end_tokens(model)
    tokens = [prompt_ids]
    for index in range(max_new_tokens):
        token = _choose(everyone or world, logits, temperature, top_p)
        tokens.append(token)
        if streamer is not None:
            streamer.put(token[0])
        if int(token) in ends or index + 1 == max_new_tokens:
            break
        logits = _logits(model, token, ring_cache=cache)
    if streamer is not None:
        streamer.end()
    return torch.cat(tokens, dim=1), cache


def _prefill(
    model: "PreTrainedModel",
    world: "World",
    prompt_ids: Tensor,
    cache: RingCache,
    partition: Partition,
) -> Tensor:
    """Return the logits of the last token, [1, vocabulary], on every rank."""
    num_tokens = prompt_ids.shape[1]
    if num_tokens < world.size:
        # Some rank would have no token, which the layers cannot compute.
        return _logits(model, prompt_ids, ring_cache=cache)
    layout = partition_tokens(num_tokens, world.size, partition)
    mine = shard(prompt_ids, world=world, layout=layout)
    logits = _logits(model, mine, ring_layout=layout, ring_cache=cache)
    owner = next(
        rank for rank in range(world.size) if num_tokens - 1 in layout.positions(rank)[-1:]
    )
    rows = [int(rank == owner) for rank in range(world.size)]
    own = logits if world.rank == owner else logits[:0]
    return gather_rows(world, own.contiguous(), rows, terms="last logits")[owner]


def _logits(model: Any, tokens: Tensor, **how: Any) -> Tensor:
    logits: Tensor = model(input_ids=tokens, logits_to_keep=1, **how).logits[:, -1]
    return logits


def _choose(world: "World", logits: Tensor, temperature: float, top_p: float) -> Tensor:
    """Return rank 0's next token, [1, 1], on every rank."""
    token = torch.zeros(0, 1, dtype=torch.int64)
    if world.rank == 0:
        token = _sampled(logits.float(), temperature, top_p)
    rows = [int(rank == 0) for rank in range(world.size)]
    return gather_rows(world, token, rows, terms="next token")[0]


def _sampled(scores: Tensor, temperature: float, top_p: float) -> Tensor:
    if temperature == 0.0:
        return scores.argmax(-1, keepdim=True)
    # In the order and by the code of transformers' generate(), so that a seed gives its tokens.
    nothing = torch.zeros(1, 0, dtype=torch.int64)
    if temperature != 1.0:
        scores = TemperatureLogitsWarper(temperature)(nothing, scores)  # type: ignore[arg-type]
    if top_p < 1.0:
        scores = TopPLogitsWarper(top_p)(nothing, scores)  # type: ignore[arg-type]
    return torch.multinomial(scores.softmax(-1), 1)


def _end_tokens(model: Any) -> frozenset[int]:
    ends = getattr(model.generation_config, "eos_token_id", None)
    if ends is None:
        return frozenset()
    return frozenset([ends] if isinstance(ends, int) else ends)
