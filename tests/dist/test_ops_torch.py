"""torch.ops.tokenweave.*: schemas and fakes, torch.compile, gradients refused by name."""

from typing import Any

import pytest
import torch
from torch.library import opcheck

import tokenfabric
import tokenweave
import tokenweave.torch_ops  # defines the operators
from tests.dist import fused_cases
from tests.dist.fused_cases import EPS, Case
from tokenfabric.testing.spawn import run_ranks
from tokenfabric.testing.tolerance import assert_same_bits
from tokenfabric.world import World
from tokenweave.plan import split_rows


def fused_arguments(
    world: World, residual_layout: str, *, has_residual: bool = True
) -> tuple[Any, ...]:
    """Return positional arguments of torch.ops.tokenweave.allreduce_rmsnorm."""
    case = Case(tokens=2 * world.size + 1, hidden=72, has_bias=True)
    inputs = fused_cases.make_inputs(case, world.size, 0)
    residual = inputs.residual
    assert residual is not None
    if residual_layout == "row_sharded":
        start, stop = split_rows(case.tokens, world.size)[world.rank]
        residual = residual[start:stop].contiguous()
    return (
        inputs.partials[world.rank],
        residual if has_residual else None,
        inputs.weight,
        inputs.bias,
        EPS,
        0.0,
        residual_layout,
        "auto",
        world.group_name,
    )


def _rank_opcheck(world: World) -> None:
    ops, name = torch.ops.tokenweave, world.group_name
    x = torch.randn(2 * world.size + 1, 8)
    for layout in ("replicated", "row_sharded"):
        arguments = fused_arguments(world, layout)
        opcheck(ops.allreduce_rmsnorm.default, arguments)
        opcheck(ops.allreduce_rmsnorm_.default, arguments)
    without_residual = fused_arguments(world, "replicated", has_residual=False)
    opcheck(ops.allreduce_rmsnorm.default, without_residual)
    opcheck(ops.all_reduce.default, (x, "auto", name))
    opcheck(ops.reduce_scatter.default, (x, name))
    for dim in (0, -1):
        opcheck(ops.all_gather.default, (x, dim, None, name))
        opcheck(ops.all_gather.default, (x, dim, [x.shape[dim]] * world.size, name))
    opcheck(ops.broadcast_.default, (x, 0, name))


def test_operators_pass_opcheck() -> None:
    """Schemas say what is mutated, fakes return the right shapes, autograd is registered."""
    run_ranks(_rank_opcheck, 2, timeout_s=110)


def block(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, world: World
) -> tuple[torch.Tensor, ...]:
    """A made-up block that calls every collective between ordinary operations."""
    normed, residual = tokenweave.allreduce_rmsnorm(x * 2, residual, weight, world=world, eps=EPS)
    normed2, _ = tokenweave.allreduce_rmsnorm(
        torch.tanh(normed), residual, weight, world=world, eps=EPS, residual_out=residual
    )
    total = tokenweave.all_reduce(normed2 + 1, world=world)
    rows = tokenweave.reduce_scatter(total, world=world)
    gathered = tokenweave.all_gather(rows * 0.5, world=world)
    chosen = tokenweave.broadcast(gathered.clone(), world=world, src=world.size - 1)
    return normed, residual, total, gathered, chosen + 1


def _rank_compile(world: World, backend: str, token_counts: tuple[int, ...]) -> None:
    compiled = torch.compile(block, fullgraph=True, backend=backend)
    with torch.no_grad():
        for tokens in token_counts:
            case = Case(tokens=tokens, hidden=64, dtype="fp32")
            inputs = fused_cases.make_inputs(case, world.size, tokens)
            assert inputs.residual is not None
            arguments = (inputs.partials[world.rank], inputs.residual)
            eager = block(*(a.clone() for a in arguments), inputs.weight, world)
            found = compiled(*(a.clone() for a in arguments), inputs.weight, world)
            for index, (mine, theirs) in enumerate(zip(found, eager, strict=True)):
                if backend == "inductor":
                    # Inductor's tanh and fused arithmetic round otherwise than eager's.
                    torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)
                else:
                    assert_same_bits(mine, theirs, what=f"output {index}, {tokens} tokens")


@pytest.mark.parametrize(
    ("backend", "token_counts"),
    # Inductor compiles C++ for each shape; what a second shape needs, aot_eager shows as well.
    [("aot_eager", (6, 8, 10)), ("inductor", (6,))],
)
def test_collectives_compile_without_graph_breaks(
    backend: str, token_counts: tuple[int, ...]
) -> None:
    """fullgraph=True, with in-place forms and changing shapes, equals eager on two ranks."""
    run_ranks(_rank_compile, 2, backend, token_counts, timeout_s=110)


def _rank_gradients(world: World) -> None:
    x = torch.ones(3, 64, requires_grad=True)
    plain, weight = torch.ones(3, 64), torch.nn.Parameter(torch.ones(64))
    with pytest.raises(tokenfabric.ConfigError, match=r"^x_partial requires a gradient"):
        tokenweave.allreduce_rmsnorm(x, None, weight.detach(), world=world)
    with pytest.raises(tokenfabric.ConfigError, match=r"^weight requires a gradient"):
        tokenweave.allreduce_rmsnorm(plain, None, weight, world=world)
    for function in (tokenweave.all_reduce, tokenweave.reduce_scatter, tokenweave.all_gather):
        with pytest.raises(tokenfabric.ConfigError, match=r"^x requires a gradient"):
            function(x, world=world)
    with pytest.raises(tokenfabric.ConfigError, match=r"all_reduce got 1 tensor\(s\) that require"):
        torch.ops.tokenweave.all_reduce(x, "auto", world.group_name)
    with torch.no_grad():
        assert not tokenweave.all_reduce(x, world=world).requires_grad
    with torch.inference_mode():
        total = torch.ops.tokenweave.all_reduce(x, "auto", world.group_name)
        assert torch.equal(total, world.size * plain)


def test_gradients_are_refused_by_name() -> None:
    """With autograd on, an input that wants a gradient is named; without, it is an input."""
    run_ranks(_rank_gradients, 2)


def _rank_module(world: World) -> str:
    case = Case(tokens=7, hidden=72, has_bias=True)
    inputs = fused_cases.make_inputs(case, world.size, 1)
    module = tokenweave.FusedAllReduceRMSNorm(
        72, world=world, eps=EPS, weight=inputs.weight, bias=inputs.bias
    )
    x = inputs.partials[world.rank].view(7, 1, 72)
    assert inputs.residual is not None
    residual = inputs.residual.view(7, 1, 72)
    normed, new_residual = module(x, residual)
    assert normed.shape == new_residual.shape == x.shape
    expected = tokenweave.allreduce_rmsnorm(
        x, residual, inputs.weight, world=world, eps=EPS, bias=inputs.bias
    )
    assert_same_bits(normed, expected[0])
    assert_same_bits(new_residual, expected[1])
    assert sorted(module.state_dict()) == ["bias", "weight"]
    return repr(module)


def test_the_module_is_the_function() -> None:
    """FusedAllReduceRMSNorm gives the bits of allreduce_rmsnorm and shows its settings."""
    assert "72, eps=1e-05, ranks=2" in run_ranks(_rank_module, 2)[0]


def _rank_unknown_world(world: World) -> None:
    with pytest.raises(tokenfabric.ConfigError, match="no open world is named 'nowhere'"):
        torch.ops.tokenweave.all_reduce(torch.ones(2), "auto", "nowhere")


def test_an_operator_needs_an_open_world() -> None:
    """A name that no open world has is an error that lists those there are."""
    run_ranks(_rank_unknown_world, 1)
