"""The contract suffices: an engine that knows only plans gets attention and its gradients right."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.unit.ring_cases import calls
from tests.unit.ring_executor import attention, run_plans
from tokenring.partition import Layout, partition_tokens
from tokenring.plan import RingPlan, plan_attention

SCALE = 0.37
# fp64 sums of at most a hundred terms of order one, in another order.
TOLERANCE = {"rtol": 1e-9, "atol": 1e-11}


def visible_pairs(plan: RingPlan) -> Tensor:
    """Return which key each query sees, both in the order of the whole tensors."""
    q, kv, mask = plan.problem.q_layout, plan.problem.kv_layout, plan.problem.mask

    def places(layout: Layout) -> tuple[Tensor, Tensor]:
        sequences = [s for s, length in enumerate(layout.lengths) for _ in range(length)]
        positions = [
            layout.starts[s] + i for s, length in enumerate(layout.lengths) for i in range(length)
        ]
        return torch.tensor(sequences, dtype=torch.long), torch.tensor(positions, dtype=torch.long)

    (q_sequence, q_position), (kv_sequence, kv_position) = places(q), places(kv)
    apart = kv_position[None, :] - q_position[:, None]
    visible = q_sequence[:, None] == kv_sequence[None, :]
    if mask.left is not None:
        visible &= apart >= -mask.left
    if mask.right is not None:
        visible &= apart <= mask.right
    return visible


def check_against_dense(plan: RingPlan, seed: int) -> None:
    """Compare what the virtual ranks merge with dense attention in fp64."""
    problem = plan.problem
    generator = torch.Generator().manual_seed(seed)

    def random(rows: int, heads: int, width: int) -> Tensor:
        return torch.randn(rows, heads, width, dtype=torch.float64, generator=generator)

    q = random(problem.q_layout.num_tokens, problem.heads_q, problem.head_dim)
    k = random(problem.kv_layout.num_tokens, problem.heads_kv, problem.head_dim)
    v = random(problem.kv_layout.num_tokens, problem.heads_kv, problem.head_dim_v)
    dout = random(problem.q_layout.num_tokens, problem.heads_q, problem.head_dim_v)
    for tensor in (q, k, v):
        tensor.requires_grad_()
    out, lse = attention(q, k, v, problem.group_size, visible_pairs(plan), SCALE)
    gradients = torch.autograd.grad((out * dout).sum(), (q, k, v))
    whole = {
        "q": (q.detach(),),
        "kv": (k.detach(), v.detach()),
        "pack": (q.detach(), dout, lse.detach(), (dout * out.detach()).sum(-1)),
    }
    inputs = []
    for rank in range(problem.world_size):
        rows = {
            "q": problem.q_layout.shard_indices(rank),
            "kv": problem.kv_layout.shard_indices(rank),
        }
        inputs.append(
            {kind: tuple(t[rows["kv" if kind == "kv" else "q"]] for t in tensors)
             for kind, tensors in whole.items()}
        )  # fmt: skip
    merged = run_plans(plan.ranks, inputs, SCALE)
    expected: dict[str, tuple[Tensor, ...]]
    if problem.direction == "forward":
        expected = {"out": (out.detach(), lse.detach())}
    else:
        dq, dk, dv = gradients
        expected = {"dq": (dq,), "dkv": (dk, dv)}
    for rank in range(problem.world_size):
        for kind, tensors in expected.items():
            layout = problem.kv_layout if kind == "dkv" else problem.q_layout
            rows_here = layout.shard_indices(rank)
            if rows_here:
                for actual, tensor in zip(merged[rank][kind], tensors, strict=True):
                    torch.testing.assert_close(actual, tensor[rows_here], **TOLERANCE)


@given(calls(), st.integers(0, 1000))
@settings(max_examples=150, deadline=None)
def test_engine_matches_dense_attention(call: dict[str, Any], seed: int) -> None:
    """Every strategy, partition, mask, head layout and pass, on up to 8 ranks."""
    check_against_dense(plan_attention(**call), seed)


@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("strategy", ["q_push", "kv_push", "kv", "ulysses"])
def test_64_ranks_match_dense_attention(strategy: str, direction: str) -> None:
    """Many more ranks than a machine has, with rows that differ in number."""
    layout = partition_tokens(197, 64, "zigzag")
    check_against_dense(
        plan_attention(
            q_layout=layout, causal=True, heads_q=2, heads_kv=1, head_dim=4, head_dim_v=3,
            strategy=strategy, direction=direction,
        ),
        seed=1,
    )  # fmt: skip
