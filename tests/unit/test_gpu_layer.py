"""The layers that the GPU benchmark times are a transformer's, and its walks what they say.

On fakes of the kernels, with shapes of a few columns.
"""

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from benchmarks import bench_gpu_layer, gpu_layer
from benchmarks.gpu_layer import RankLayers
from tests.unit.fake_cuda import run_threads
from tests.unit.gpu_models import SLOT_BYTES, complete, put_fakes
from tokenfabric.testing.tolerance import assert_same_bits
from tokenweave.model_shape import ModelShape

TOKENS = 24
SHAPE = ModelShape(
    name="tiny", num_layers=2, hidden=64, num_query_heads=16, num_kv_heads=8, head_dim=16,
    intermediate=320, vocab=100,
)  # fmt: skip


def reference(layers: RankLayers) -> torch.Tensor:
    """Return the last norm in fp64, by the formulas."""

    def normed(x: torch.Tensor) -> torch.Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + gpu_layer.EPS)

    residual = layers.x_partial[0].double()
    modules = [stage.block.__closure__[0].cell_contents for stage in layers._stages]  # type: ignore[attr-defined]
    for index, module in enumerate(modules):
        weights = [weight.double() for weight in module.parameters()]
        y = normed(residual) @ weights[0].T
        if index % 2:
            gate, up = y.chunk(2, dim=-1)
            residual = residual + (F.silu(gate) * up) @ weights[1].T
            continue
        q, k, v = (it.view(TOKENS, -1, 16) for it in y.split((32, 16, 16), dim=-1))
        cos, sin = module.cos.double()[:, None], module.sin.double()[:, None]
        q, k = (it * cos + it.roll(8, -1) * sin for it in (q, k))
        scores = torch.einsum("qhd,kd->hqk", q, k[:, 0]) / 4
        later = torch.ones(TOKENS, TOKENS, dtype=torch.bool).triu(1)
        weighted = scores.masked_fill(later, float("-inf")).softmax(-1)
        found = torch.einsum("hqk,kd->qhd", weighted, v[:, 0])
        residual = residual + found.flatten(1) @ weights[1].T
    return normed(residual)


@torch.no_grad()
def test_walks_of_a_ranks_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole, split in order and overlapped: the same layers; parts leave the others out."""
    fake = put_fakes(monkeypatch, "two_shot")

    def of_rank(world: Any) -> None:
        complete(world)
        with torch.no_grad():
            layers = RankLayers(SHAPE, 8, 2, TOKENS, world)
            exact = reference(layers)
            plan = bench_gpu_layer._halves(TOKENS)
            ordered = layers.walk(plan, "compute", "communication")()
            assert_same_bits(layers.walk(plan)(), ordered, what="overlapped")
            whole = layers.walk(bench_gpu_layer.whole_plan(TOKENS))()
            for name, found in (("split", ordered), ("whole", whole)):
                # Five reductions of bf16 terms of size 1: some roundings of 2^-9 of a few units.
                error = (found[0].double() - exact).abs().max()
                assert error < 0.1, f"{name}: {error}"
            fake.launches.clear()
            layers.walk(plan, "compute")()
            assert fake.launches == []
            layers.walk(plan, "communication")()
            assert len(fake.launches) == 2 * 5

    run_threads(fake, 1, SLOT_BYTES, of_rank)


def test_plans_of_the_benchmark() -> None:
    """Of the GPU's own table where it splits; halves where there is none or it does not."""
    plan, made_by = bench_gpu_layer.plan_of(8192, "NVIDIA H200")
    assert plan.is_split
    assert made_by == "planned (h200)"
    plan, made_by = bench_gpu_layer.plan_of(8192, "another GPU")
    assert (plan.boundary, made_by) == (4096, "halves, 8 SMs")
