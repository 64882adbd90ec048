"""Forward passes of a decoder as CUDA graphs: what of a pass is captured, and by what it is known.

Captured is the walk of the plan, from the embeddings' partial sums to the last norm. Token ids,
masks and positions are worked out before it, launch by launch, since transformers and the check of
token ids look at numbers on the host; so is the head after it.
"""

from collections.abc import Callable, Hashable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, StaticLayer

from tokenfabric.world import World
from tokenweave.cuda.graphs import CallGraphs, CudaCapture
from tokenweave.executor import Executor
from tokenweave.graph_plan import (
    CacheKind,
    GraphBook,
    GraphDecision,
    GraphRequest,
    decide_graph,
)
from tokenweave.integrations.split_cache import PieceCache
from tokenweave.integrations.split_inputs import BlockInputs
from tokenweave.split_plan import SplitPlan

Walk = Callable[[Tensor, BlockInputs], Tensor]
_PLAIN = (type(None), bool, int, float, str)


class PassGraphs:
    """The graphs of one model."""

    def __init__(
        self,
        backbone: nn.Module,
        executor: Executor[BlockInputs],
        world: World,
        decided_on_host: str,
    ):
        """Take the model.

        Args:
            backbone: whose parameters the blocks read.
            executor: walks its plans.
            world: the ranks.
            decided_on_host: see `GraphRequest`.
        """
        self._executor = executor
        self._device = world.device.type if world.cuda is None else "cuda"
        self._decided_on_host = decided_on_host
        # Where parameters are found at every pass: one that was replaced is not missed.
        self._parameters = [
            (module._parameters, name)
            for module in backbone.modules()
            for name in module._parameters
        ]
        self._graphs: CallGraphs | None = None
        if world.cuda is not None:
            held = executor.reduction.held_memory
            self._graphs = CallGraphs(world, CudaCapture(), held, GraphBook())

    def decide(self, inputs: BlockInputs, plan: SplitPlan, *, keeps_hidden: bool) -> GraphDecision:
        """Return whether a pass may be a graph, and note it in the executor's stats."""
        kind, is_ready = _kind_of(inputs.cache)
        passes, stats = self._executor.reduction.passes, self._executor.stats
        values = {**inputs.attention_kwargs, **inputs.masks}
        stats.last_graph = decision = decide_graph(
            GraphRequest(
                asked=passes.config.graphs,
                device=self._device,
                reduction=passes.config.reduction,
                num_rows=plan.num_tokens,
                cache=kind,
                is_cache_ready=is_ready,
                is_split=plan.is_split,
                keeps_hidden=keeps_hidden,
                is_recorded=stats.records is not None,
                decided_on_host=self._decided_on_host,
                foreign_arguments=tuple(
                    name
                    for name, value in values.items()
                    if not isinstance(value, _PLAIN)
                    and not (name in inputs.masks and isinstance(value, Tensor))
                ),
            )
        )
        return decision

    def run(self, x_partial: Tensor, inputs: BlockInputs, plan: SplitPlan, walk: Walk) -> Tensor:
        """Return what `walk(x_partial, inputs)` returns. Collective; of a pass that may be a graph.

        Args:
            x_partial: this rank's partial sums of the embeddings.
            inputs: what the blocks read.
            plan: of the pass.
            walk: walks it.
        """
        assert self._graphs is not None
        kinds = sorted(inputs.masks)
        masks = [inputs.masks[kind] for kind in kinds]
        cos, sin = inputs.position_embeddings
        tensors = (x_partial, inputs.position_ids, cos, sin, *masks)

        def call(given: tuple[Tensor | None, ...]) -> Tensor:
            x, position_ids, given_cos, given_sin, *given_masks = given
            assert x is not None
            assert position_ids is not None
            assert given_cos is not None
            assert given_sin is not None
            return walk(
                x,
                replace(
                    inputs,
                    masks=dict(zip(kinds, given_masks, strict=True)),
                    position_ids=position_ids,
                    position_embeddings=(given_cos, given_sin),
                ),
            )

        key = (plan, self._addresses(inputs.cache), _settings(inputs.attention_kwargs))
        normed, is_replayed = self._graphs.run(key, tensors, call)
        if is_replayed:
            self._executor.note_replay(plan)
        return normed

    def _addresses(self, cache: Cache | PieceCache | None) -> tuple[object, ...]:
        """Return where everything is that a graph reads and that is not copied for it."""
        read = [
            parameter
            for parameters, name in self._parameters
            if (parameter := parameters[name]) is not None
        ]
        if cache is None:
            return tuple(map(Tensor.data_ptr, read))
        assert isinstance(cache, Cache)
        layers: Any = cache.layers
        read += [x for it in layers for x in (it.keys, it.values, it.cumulative_length)]
        return *map(Tensor.data_ptr, read), layers[0].keys.shape


def _kind_of(cache: Cache | PieceCache | None) -> tuple[CacheKind, bool]:
    """Return the kind of a cache, and whether its memory is there."""
    if cache is None:
        return "none", True
    if not isinstance(cache, Cache) or cache.offloading:
        return "other", True
    # An exact match: a static window counts its tokens on the host.
    if not cache.layers or any(type(layer) is not StaticLayer for layer in cache.layers):
        return "other", True
    return "static", all(layer.is_initialized for layer in cache.layers)


def _settings(attention_kwargs: dict[str, Any]) -> Hashable:
    """Return what else decides which kernels a pass launches."""
    return (
        tuple(sorted(attention_kwargs.items())),
        torch.is_autocast_enabled("cuda"),
        torch.get_float32_matmul_precision(),
    )
