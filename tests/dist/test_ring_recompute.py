"""keep_attention: a region that is computed again does not attend or send again, bit for bit."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import tokenring
from tokenfabric.errors import ConfigError
from tokenfabric.testing.spawn import run_ranks
from tokenfabric.world import World
from tokenring.connection import channel_of

TOKENS, HEADS, WIDTH = 24, 2, 8


class Region:
    """Two attention calls with something before, between and behind them."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.num_calls = 2
        self.times_computed = 0
        self.after: Callable[[Tensor], Tensor] = torch.sin

    def __call__(self, x: Tensor) -> Tensor:
        self.times_computed += 1
        for _ in range(self.num_calls):
            q, k, v = (torch.cos(x + number) for number in range(3))
            out = tokenring.ring_attention(q, k, v, world=self._world, causal=True)
            x = self.after(out) + x
        return x * x


def own_rows(world: World) -> Tensor:
    generator = torch.Generator().manual_seed(world.rank)
    return torch.randn(1, TOKENS // world.size, HEADS, WIDTH, generator=generator)


def computed_again(region: Region, x: Tensor) -> Tensor:
    result: Tensor = checkpoint(region, x, use_reentrant=False, context_fn=tokenring.keep_attention)
    return result


def _rank_gets_the_same_gradient_without_sending_again(world: World) -> None:
    x = own_rows(world)
    gradients, bytes_sent = [], []
    for compute in (Region.__call__, computed_again):
        region, inputs = Region(world), x.clone().requires_grad_()
        before = sum(channel_of(world).bytes_sent.values())
        compute(region, inputs).sum().backward()
        bytes_sent.append(sum(channel_of(world).bytes_sent.values()) - before)
        gradients.append(inputs.grad)
        assert region.times_computed == (2 if compute is computed_again else 1)
    assert torch.equal(*gradients)
    assert bytes_sent[0] == bytes_sent[1] > 0


def _rank_goes_back_twice(world: World) -> None:
    """Through one graph again, and through a region in a region."""
    inputs = own_rows(world).requires_grad_()
    region = Region(world)
    total = computed_again(region, inputs).sum()
    first, second = (torch.autograd.grad(total, inputs, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)

    def outer(x: Tensor) -> Tensor:
        return computed_again(region, torch.tanh(x))

    plain, nested = (
        torch.autograd.grad(compute(inputs).sum(), inputs)[0]
        for compute in (
            lambda x: region(torch.tanh(x)),
            lambda x: checkpoint(
                outer, x, use_reentrant=False, context_fn=tokenring.keep_attention
            ),
        )
    )
    assert torch.equal(plain, nested)


def _rank_refuses_what_was_kept_for_something_else(world: World) -> None:
    inputs = own_rows(world).requires_grad_()
    changing = Region(world)
    changing.after = lambda out: out.mul_(2)
    with pytest.raises(ConfigError, match="changed in place"):
        computed_again(changing, inputs).sum().backward()
    growing = Region(world)
    first, again = tokenring.keep_attention()
    with first:
        growing(inputs)
    growing.num_calls = 3
    with pytest.raises(ConfigError, match=r"called 2 times .* called again"), again:
        growing(inputs)
    # Attention outside is not touched by what went wrong inside, and the world is usable.
    computed_again(Region(world), inputs).sum().backward()


@pytest.mark.parametrize(
    "function",
    [
        _rank_gets_the_same_gradient_without_sending_again,
        _rank_goes_back_twice,
        _rank_refuses_what_was_kept_for_something_else,
    ],
)
@pytest.mark.parametrize("world_size", [1, 2])
def test_attention_is_kept(function: Callable[[World], None], world_size: int) -> None:
    if world_size == 1 and function is _rank_gets_the_same_gradient_without_sending_again:
        pytest.skip("one rank sends nothing")
    run_ranks(function, world_size)
