"""Keeps generate() in step over the ranks: rank 0's random state, tokens and stop decision.

All ranks hold the same logits, so all would choose the same token; what could differ (a seed, a
clock, a user's criterion, a sampling kernel) is taken from rank 0 at every step.
"""

import inspect
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers.generation.configuration_utils import GenerationConfig, GenerationMode
from transformers.generation.stopping_criteria import StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from tokenfabric.errors import ConfigError, MismatchError
from tokenfabric.world import World
from tokenweave import ops
from tokenweave.integrations.agreement import fingerprint, prepare_together
from tokenweave.integrations.patches import Patches

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_SAMPLING_MODES = (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE)
_BEAM_MODES = (GenerationMode.BEAM_SEARCH, GenerationMode.BEAM_SAMPLE)
_REFUSED_ARGUMENTS = ("assistant_model", "custom_generate", "synced_gpus")
_REFUSED_METHODS = {
    "generate_batch": "continuous batching sizes its cache for all KV heads",
    "init_continuous_batching": "continuous batching sizes its cache for all KV heads",
    "save_pretrained": "it would save one rank's share; call tokenweave.restore(model) first",
    "push_to_hub": "it would save one rank's share; call tokenweave.restore(model) first",
    "resize_token_embeddings": "the vocabulary is dealt to the ranks; call it before",
}


def attach_generation(model: "PreTrainedModel", world: World, patches: Patches) -> None:
    """Make generate() of a parallelized model collective, and refuse what would go wrong on it."""
    for name, reason in _REFUSED_METHODS.items():
        if hasattr(model, name):
            patches.set(model, name, _refusal(name, reason))
    if model.can_generate():
        generation = LockstepGeneration(model, world)
        patches.set(model, "generate", generation.generate)
        patches.set(model, "_get_stopping_criteria", generation.stopping_criteria)
        # Otherwise a static cache may be sized from the config, for all KV heads.
        patches.set(model, "_get_static_cache_init_shape", lambda: None)
        # On GPUs generate() compiles the forward of models with a static cache: not this one's,
        # whose small passes are CUDA graphs already.
        patches.set(model, "_valid_auto_compile_criteria", lambda *args: False)


def _refusal(name: str, reason: str) -> Any:
    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise ConfigError(f"{name}() does not work on a parallelized model: {reason}")

    return refuse


class LockstepGeneration:
    """generate() of one model: called on every rank with the same inputs."""

    def __init__(self, model: Any, world: World):
        self._model = model
        self._world = world
        self._signature = inspect.signature(type(model).generate)
        self._tokens: Tensor | None = None
        """The tokens of the last step, [batch]; rank 0's on every rank."""

    @torch.no_grad()
    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """As the model's own generate(). Collective.

        Every rank returns the same. The random state of the other ranks becomes that of rank 0;
        stop decisions (time limits, a user's criteria) and streamed tokens are rank 0's.

        Raises:
            ConfigError: a generation mode that would not come out right.
            MismatchError: the ranks were given different inputs.
        """
        call = self._signature.bind(self._model, *args, **kwargs)
        for name in _REFUSED_ARGUMENTS:
            if call.arguments.get(name):
                raise ConfigError(f"generate({name}=...) is not supported on a parallelized model")
        arguments = {**call.arguments, **call.kwargs}
        tensors = [(name, value) for name, value in arguments.items() if isinstance(value, Tensor)]
        prepare_together(
            self._world,
            lambda: (tensors, fingerprint(sorted(tensors, key=lambda item: item[0]))),
            operation="generate",
            what="input tensor",
        )
        self._share_random_state()
        self._tokens = None
        streamer = call.arguments.get("streamer")
        if self._world.rank > 0 and streamer is not None:
            call.arguments["streamer"] = _RankZeroStreamer(streamer, self)
        return type(self._model).generate(*call.args, **call.kwargs)

    def stopping_criteria(
        self, generation_config: GenerationConfig, *args: Any, **kwargs: Any
    ) -> Any:
        """Return the model's own criteria with rank 0's decision for all ranks."""
        mode = generation_config.get_generation_mode()
        if mode not in (*_SAMPLING_MODES, *_BEAM_MODES):
            raise ConfigError(
                f"generation mode {mode.value} is not supported on a parallelized model; "
                f"supported: {', '.join(m.value for m in (*_SAMPLING_MODES, *_BEAM_MODES))}"
            )
        criteria = type(self._model)._get_stopping_criteria(
            self._model, generation_config, *args, **kwargs
        )
        return _RankZeroDecision(criteria, self, is_beam=mode in _BEAM_MODES)

    def take_rank_zeros(self, tokens: Tensor, is_done: Tensor) -> tuple[Tensor, Tensor]:
        """Return rank 0's (tokens, is_done) on every rank; both [batch]. Collective."""
        message = torch.stack((tokens, is_done.to(tokens.dtype)))
        ops.broadcast(message, world=self._world)
        self._tokens, is_done = message[0], message[1].to(torch.bool)
        return self._tokens, is_done

    def compare(self, tokens: Tensor, is_done: Tensor) -> Tensor:
        """Return rank 0's is_done on every rank; both [batch]. Collective.

        Raises:
            MismatchError: the tokens are not the same on all ranks (raised on all of them).
        """
        message = torch.stack((tokens, is_done.to(tokens.dtype))).unsqueeze(0)
        gathered = ops.all_gather(message, world=self._world)
        if not torch.equal(gathered[:, 0], gathered[:1, 0].expand_as(gathered[:, 0])):
            raise MismatchError(
                "beam search came to different tokens on different ranks",
                rank=self._world.rank,
                operation="generate",
            )
        return gathered[0, 1].to(torch.bool)

    def last_tokens(self) -> Tensor | None:
        """Return rank 0's newest tokens, or None before the first step of a generation."""
        return self._tokens

    def _share_random_state(self) -> None:
        world = self._world
        state = ops.broadcast(torch.get_rng_state().to(world.device), world=world)
        if world.rank > 0:
            torch.set_rng_state(state.cpu())
        if world.cuda is None:
            return
        # Tokens are drawn where the logits are.
        drawn = torch.cuda.get_rng_state(world.device)
        drawn = ops.broadcast(drawn.to(world.device), world=world)
        if world.rank > 0:
            torch.cuda.set_rng_state(drawn.cpu(), world.device)


class _RankZeroDecision(StoppingCriteriaList):
    """Stopping criteria whose answer is rank 0's on every rank, and so are the newest tokens."""

    def __init__(
        self, criteria: StoppingCriteriaList, generation: LockstepGeneration, *, is_beam: bool
    ):
        super().__init__(criteria)
        self._generation = generation
        self._is_beam = is_beam

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        is_done = super().__call__(input_ids, scores, **kwargs)
        if self._is_beam:
            # Beams are chosen from scores inside the search and cannot be put right from here.
            return self._generation.compare(input_ids[:, -1], is_done)
        # generate() goes on with this very tensor.
        input_ids[:, -1], is_done = self._generation.take_rank_zeros(input_ids[:, -1], is_done)
        return is_done


class _RankZeroStreamer(BaseStreamer):
    """Hands the wrapped streamer rank 0's tokens."""

    def __init__(self, streamer: BaseStreamer, generation: LockstepGeneration):
        self._streamer = streamer
        self._generation = generation

    def put(self, value: Tensor) -> None:
        tokens = self._generation.last_tokens()
        self._streamer.put(value if tokens is None else tokens.cpu())

    def end(self) -> None:
        self._streamer.end()
