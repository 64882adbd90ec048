"""Layers for people with their own model: partial sums, and the styles that make them."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

import tokenweave
from tokenfabric.errors import ConfigError
from tokenfabric.testing.spawn import run_ranks
from tokenfabric.testing.tolerance import assert_close, assert_same_bits
from tokenfabric.world import World
from tokenweave import FusedNormParallel, PartialRowParallelLinear, PartialRowwiseParallel

HIDDEN, WIDTH = 48, 50
SIZES = (0, 1, 2, 3, 7, 401)


@torch.no_grad()
def _rank_partial_sums(world: World) -> None:
    generator = torch.Generator().manual_seed(0)
    for dtype in (torch.float32, torch.bfloat16):
        linear = nn.Linear(WIDTH, HIDDEN).to(dtype)
        for parameter in linear.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
        own = PartialRowParallelLinear.of(linear, world=world)
        start = sum(x.shape[1] for x in linear.weight.chunk(world.size, 1)[: world.rank])
        columns = slice(start, start + own.weight.shape[1])
        norm = tokenweave.FusedAllReduceRMSNorm(HIDDEN, world=world, bias=own.bias, dtype=dtype)
        for num_tokens in SIZES:
            x = torch.randn(1, num_tokens, WIDTH, generator=generator).to(dtype)
            residual = torch.randn(1, num_tokens, HIDDEN, generator=generator).to(dtype)
            for _ in range(3):
                normed, total = norm(own(x[..., columns].contiguous()), residual)
            exact = linear.double()(x.double()) + residual.double()
            linear.to(dtype)
            assert_close(total, exact, linear(x) + residual, what=f"{dtype} {num_tokens}")
            scaled = exact * torch.rsqrt(exact.square().mean(-1, keepdim=True) + norm.eps)
            same = nn.functional.rms_norm(linear(x) + residual, (HIDDEN,), None, norm.eps)
            assert_close(normed, scaled, same, what=f"norm of {dtype} {num_tokens}")


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_partial_sums_add_up_to_the_linear_layer(world_size: int) -> None:
    """With its bias added once, for every number of tokens, over and over in one memory."""
    run_ranks(_rank_partial_sums, world_size)


class Mlp(nn.Module):
    """Its norm takes a partial sum and a residual once it is fused."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.up = nn.Linear(HIDDEN, WIDTH, bias=False)
        self.down = nn.Linear(WIDTH, HIDDEN, bias=False)
        self.norm = nn.RMSNorm(HIDDEN, 1e-5)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator)

    def forward(self, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        normed, residual = self.norm(self.down(self.up(x).relu()), residual)
        return normed, residual

    def whole(self, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        """What forward returns after the styles, in one process."""
        residual = residual + self.down(self.up(x).relu())
        return self.norm(residual), residual


@torch.no_grad()
def _rank_styles(world: World) -> None:
    mesh = init_device_mesh("cpu", (world.size,))
    # Other weights on every rank: rank 0's count, as in torch's own styles.
    whole, model = Mlp(0), Mlp(world.rank)
    styles = {
        "up": ColwiseParallel(),
        "down": PartialRowwiseParallel(world),
        "norm": FusedNormParallel(world),
    }
    before = dict(model.named_modules())
    parallelize_module(model, mesh, styles)
    assert dict(model.named_modules()) == before, "the modules themselves are turned"
    assert model.down.weight.untyped_storage().nbytes() == model.down.weight.nbytes
    assert model.down.weight.shape[1] < WIDTH or world.size == 1
    generator = torch.Generator().manual_seed(1)
    for num_tokens in SIZES[1:]:
        x, residual = torch.randn(2, num_tokens, HIDDEN, generator=generator).unbind()
        exact = copy.deepcopy(whole).double().whole(x.double(), residual.double())
        for got, want, same in zip(
            model(x, residual), exact, whole.whole(x, residual), strict=True
        ):
            assert_close(got, want, same, factor=2.5)
            assert_same_bits(got, tokenweave.broadcast(got.clone(), world=world))


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_styles_make_a_tensor_parallel_model(world_size: int) -> None:
    """torch's ColwiseParallel before, one fused reduction after; 50 columns on 3 ranks."""
    run_ranks(_rank_styles, world_size)


def _rank_refusals(world: World) -> None:
    mesh = init_device_mesh("cpu", (world.size,))
    rows, norms = PartialRowwiseParallel(world), FusedNormParallel(world)
    refused: list[tuple[nn.Module, PartialRowwiseParallel | FusedNormParallel, str]] = [
        (nn.Linear(4, 4), rows, "a layer with a bias cannot return a partial sum"),
        (nn.Linear(1, 4, bias=False), rows, "1 columns make 1 shares, too few for the 2 ranks"),
        (nn.Embedding(4, 4), rows, r"is for nn\.Linear, got .*Embedding"),
        (nn.LayerNorm(4), norms, r"is for RMSNorms, got .*LayerNorm"),
        (nn.Linear(4, 4, bias=False), norms, r"is for RMSNorms, got .*Linear"),
    ]
    for module, style, message in refused:
        kind = type(module)
        with pytest.raises(ConfigError, match=message):
            parallelize_module(module, mesh, style)
        assert type(module) is kind
    two_axes = init_device_mesh("cpu", (1, world.size), mesh_dim_names=("data", "tensor"))
    with pytest.raises(ConfigError, match=r"the mesh has the shape \(1, 2\), but the world has 2"):
        rows._apply(nn.Linear(4, 4, bias=False), two_axes)
    parallelize_module(nn.Linear(4, 4, bias=False), two_axes["tensor"], rows)
    with pytest.raises(ConfigError, match=r"bias must be \(4,\), got \(3,\)"):
        PartialRowParallelLinear(torch.zeros(4, 2), world=world, bias=torch.zeros(3))
    with pytest.raises(ConfigError, match="weight must be"):
        PartialRowParallelLinear(torch.zeros(4), world=world)
    x = torch.zeros(2, 2, requires_grad=True)
    with pytest.raises(ConfigError, match="x requires a gradient"):
        PartialRowParallelLinear(torch.zeros(4, 2), world=world)(x)


def test_what_styles_cannot_do_is_refused_by_name() -> None:
    """Biases, other modules, too few columns, other meshes, gradients."""
    run_ranks(_rank_refusals, 2)
