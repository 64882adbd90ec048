"""Reductions with a norm before the addition: against fp64, the same bits on all ranks."""

import pytest
import torch
from torch import Tensor, nn

import tokenweave
from tokenfabric.testing.spawn import run_ranks
from tokenfabric.testing.tolerance import assert_close, assert_same_bits
from tokenfabric.world import World
from tokenweave import WeaveConfig
from tokenweave.reduction import Norm, make_reduction
from tokenweave.sandwich import SandwichNorm, SandwichReduction

HIDDEN, EPS, NUM_STEPS = 72, 1e-6, 3


def norm_of(x: Tensor, norm: Norm) -> Tensor:
    weight = norm.weight_offset + norm.weight.to(x.dtype)
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + norm.eps) * weight


def expected(
    partial_sums: list[Tensor], bias: Tensor, entry: Norm, norm: SandwichNorm
) -> tuple[Tensor, Tensor]:
    """Return (normed, residual) after all steps, in the dtype of what is given, rounded nowhere."""
    residual, *sums = partial_sums
    for total in sums:
        residual = residual + norm_of(total + bias, norm.post)
    return norm_of(residual, norm), residual


def rounding_norm(x: Tensor, norm: Norm) -> Tensor:
    """As Gemma's modules: fp32 inside, rounded to the dtype of x."""
    return norm_of(x.float(), norm).to(x.dtype)


@torch.no_grad()
def _rank_steps(world: World, kind: str) -> None:
    generator = torch.Generator().manual_seed(0)
    for dtype in (torch.float32, torch.bfloat16):
        modules = [nn.RMSNorm(HIDDEN, dtype=dtype) for _ in range(3)]
        for module in modules:
            module.weight.data = torch.randn(HIDDEN, generator=generator).mul(0.3).to(dtype)
        entry, post = (Norm(module, eps=EPS, weight_offset=1.0) for module in modules[:2])
        norm = SandwichNorm(modules[2], eps=EPS, weight_offset=1.0, post=post)
        bias = torch.randn(HIDDEN, generator=generator).to(dtype)
        reduction = make_reduction(WeaveConfig(reduction=kind), world)  # type: ignore[arg-type]
        sandwich = SandwichReduction(reduction, world)
        for num_tokens in (0, 1, world.size - 1, world.size + 1, 7, 1021):
            shape = (NUM_STEPS + 1, world.size, 1, num_tokens, HIDDEN)
            x = torch.randn(shape, generator=generator).to(dtype)
            results = []
            for keeps in (False, True):
                step = sandwich.prepare(num_tokens, HIDDEN, dtype, keep_residuals=keeps)
                out = torch.full(x.shape[2:], torch.nan, dtype=dtype)
                own = x[:, world.rank].clone()
                normed, residual = step(own[0], None, entry, None, out)
                kept = [(residual, residual.clone())]
                for i in range(NUM_STEPS):
                    normed, residual = step(own[i + 1], residual, norm, bias, normed)
                    kept.append((residual, residual.clone()))
                for returned, value in kept if keeps else ():
                    assert_same_bits(returned, value, what="a residual that is kept")
                results.append((normed, residual))
            sums = x.double().sum(1).unbind()
            exact = expected(list(sums), bias.double(), entry, norm)
            total = x[0].sum(0)
            for partial_sums in x[1:]:
                total = total + rounding_norm(partial_sums.sum(0) + bias, post)
            same = rounding_norm(total, norm), total
            for i, name in enumerate(("normed", "residual")):
                what = f"{name} of {num_tokens} tokens, {dtype}"
                assert_close(results[0][i], exact[i], same[i], factor=2.5, what=what)
                assert_same_bits(results[1][i], results[0][i], what=what)
                first = tokenweave.broadcast(results[0][i].clone(), world=world)
                assert_same_bits(results[0][i], first, what=what)


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_fused_steps_are_right_for_every_number_of_tokens(world_size: int) -> None:
    """One-shot and two-shot; whether residuals are kept changes no bit."""
    run_ranks(_rank_steps, world_size, "fused")


def test_steps_over_gloo_are_right() -> None:
    """The baseline to measure against goes the same way."""
    run_ranks(_rank_steps, 2, "gloo")
