"""torch.ops.tokenring.*: no graph breaks, the same bits as eager calls, schemas and fakes."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.library import opcheck

import tokenring
import tokenring.torch_ops  # defines the operators
from tokenfabric.testing.spawn import run_ranks
from tokenfabric.world import World
from tokenring.partition import Layout, partition_tokens

HEADS, HEADS_KV, WIDTH = 4, 2, 8


def inputs_of(world: World, layout: Layout, seed: int = 0) -> list[Tensor]:
    """Return this rank's q, k, v and the sinks, which are the same on all ranks."""
    own = torch.Generator().manual_seed(seed * world.size + world.rank)
    rows = layout.num_rows(world.rank)
    tensors = [
        torch.randn(2, rows, heads, WIDTH, generator=own) for heads in (HEADS, HEADS_KV, HEADS_KV)
    ]
    tensors.append(torch.randn(HEADS, generator=torch.Generator().manual_seed(seed)))
    return [tensor.requires_grad_() for tensor in tensors]


def layer(q: Tensor, k: Tensor, v: Tensor, sinks: Tensor, world: World, **how: Any) -> Tensor:
    """Attention between other operations, its lse used too."""
    out, lse = tokenring.ring_attention(
        torch.sin(q), k * 2, v, sinks=sinks, world=world, return_lse=True, **how
    )
    return torch.cos(out).sum() + lse.sum()


def _rank_compiles(world: World, how: dict[str, Any], layout: Layout, passes_it: bool) -> None:
    """Two sizes one after the other, forward and backward."""
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for seed in range(2):
        if passes_it:
            how = {**how, "layout": layout}
        results = []
        for function in (layer, compiled):
            inputs = inputs_of(world, layout, seed)
            total = function(*inputs, world, **how)
            results.append([total.detach(), *torch.autograd.grad(total, inputs)])
        for mine, theirs in zip(*results, strict=True):
            assert torch.equal(mine, theirs)
        if not passes_it:
            layout = partition_tokens(layout.num_tokens + world.size, world.size)


PACKED = partition_tokens([5, 0, 9], 2)


@pytest.mark.parametrize(
    ("how", "layout", "passes_it"),
    [
        ({"causal": True}, partition_tokens(16, 2), False),
        ({"causal": True, "window": 5, "strategy": "kv"}, partition_tokens(16, 2), False),
        ({"window": (2, 3), "softcap": 4.0, "scale": 0.5}, partition_tokens(16, 2), False),
        ({"causal": True}, PACKED, True),
        ({"causal": True}, partition_tokens(9, 2, "striped"), True),
    ],
)
def test_attention_compiles_without_graph_breaks(
    how: dict[str, Any], layout: Layout, passes_it: bool
) -> None:
    """fullgraph=True, with layouts passed or not, equals eager bit for bit on two ranks."""
    run_ranks(_rank_compiles, 2, how, layout, passes_it)


def _rank_follows_the_schema(world: World) -> None:
    layout = partition_tokens(7, 1)
    *tensors, sinks = inputs_of(world, layout)
    terms = (layout.as_integers(), None, None, "zigzag", True, None, [3], None, "auto", False,
             "auto", True, world.group_name)  # fmt: skip
    for arguments in ((*tensors, sinks), (*tensors, None)):
        opcheck(torch.ops.tokenring.attention.default, (*arguments, *terms))


def _rank_works_without_gradients(world: World) -> None:
    """A compiled forward alone is planned without what a backward needs, as an eager one is."""
    layout = partition_tokens(12, world.size)
    inputs = inputs_of(world, layout)
    with torch.no_grad():
        compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
        assert torch.equal(
            compiled(*inputs, world, causal=True), layer(*inputs, world, causal=True)
        )
    planned = [key[0] for key in world.prepared if isinstance(key, tuple)]
    assert [attention.needs_gradient for attention in planned] == [False]


@pytest.mark.parametrize("function", [_rank_follows_the_schema, _rank_works_without_gradients])
def test_operators_are_what_they_say(function: Callable[[World], None]) -> None:
    run_ranks(function, 1)


@pytest.mark.parametrize(
    "layout", [PACKED, partition_tokens(1, 3), partition_tokens([4, 4], 3, starts=[7, 0])]
)
def test_a_layout_is_what_its_integers_say(layout: Layout) -> None:
    assert Layout.of_integers(layout.as_integers()) == layout
