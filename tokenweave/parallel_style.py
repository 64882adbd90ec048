"""Styles for torch's `parallelize_module`: partial sums, and norms that take them.

They go where `RowwiseParallel` would, for a model whose norms are called as
`normed, residual = norm(x, residual)`; the other layers keep torch's styles:

    parallelize_module(block, mesh, {
        "qkv": ColwiseParallel(),
        "out": PartialRowwiseParallel(world),
        "mlp_norm": FusedNormParallel(world),
    })

`RowwiseParallel(output_layouts=Partial())` would leave a partial sum as well, but in private memory
that the reduction has to copy.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.distributed.tensor.parallel import ParallelStyle

from tokenfabric.errors import ConfigError
from tokenweave import ops
from tokenweave.layers import FusedAllReduceRMSNorm
from tokenweave.row_parallel import PartialRowParallelLinear

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

    from tokenfabric.world import World


class PartialRowwiseParallel(ParallelStyle):
    """Turns an nn.Linear into a PartialRowParallelLinear with this rank's columns.

    Takes the complete weight (rank `src_data_rank`'s, when that is not None; then collective) and
    frees the rest of it. The layer must have no bias: a partial sum cannot add one. Inputs are
    plain tensors with this rank's columns, as `ColwiseParallel` returns them.
    """

    def __init__(self, world: "World") -> None:
        """Take the ranks of the mesh's axis, as `World.from_group(mesh.get_group())` makes them."""
        super().__init__()
        self._world = world

    def _apply(self, module: nn.Module, device_mesh: "DeviceMesh") -> nn.Module:
        _check_mesh(self._world, device_mesh)
        if type(module) is not nn.Linear:
            raise ConfigError(f"PartialRowwiseParallel is for nn.Linear, got {_name_of(module)}")
        bias: Tensor | None = module.bias
        if bias is not None:
            raise ConfigError(
                "a layer with a bias cannot return a partial sum: take its bias off and hand it to "
                "FusedAllReduceRMSNorm(bias=...), which adds it once"
            )
        _take_from(self.src_data_rank, module.weight, self._world)
        return _become(module, PartialRowParallelLinear.of(module, world=self._world))


class FusedNormParallel(ParallelStyle):
    """Turns an RMSNorm into a FusedAllReduceRMSNorm: (x_partial, residual) -> (normed, residual).

    For torch's nn.RMSNorm and modules with a `weight` and an `eps` or `variance_epsilon`.
    """

    def __init__(self, world: "World", *, weight_offset: float = 0.0) -> None:
        """Take the ranks as PartialRowwiseParallel does; weight_offset is 1.0 for (1 + weight)."""
        super().__init__()
        self._world = world
        self._weight_offset = weight_offset

    def _apply(self, module: nn.Module, device_mesh: "DeviceMesh") -> nn.Module:
        _check_mesh(self._world, device_mesh)
        parameters = dict(module.named_parameters())
        weight = parameters.pop("weight", None)
        eps = getattr(module, "eps", getattr(module, "variance_epsilon", None))
        is_torchs = type(module) is nn.RMSNorm
        if parameters or weight is None or weight.dim() != 1 or (eps is None and not is_torchs):
            raise ConfigError(f"FusedNormParallel is for RMSNorms, got {_name_of(module)}")
        _take_from(self.src_data_rank, weight, self._world)
        fused = FusedAllReduceRMSNorm(
            weight.shape[0],
            world=self._world,
            eps=torch.finfo(weight.dtype).eps if eps is None else eps,
            weight=weight,
            weight_offset=self._weight_offset,
        )
        return _become(module, fused)


def _check_mesh(world: "World", device_mesh: "DeviceMesh") -> None:
    if device_mesh.ndim != 1 or device_mesh.size() != world.size:
        raise ConfigError(
            f"the mesh has the shape {tuple(device_mesh.shape)}, but the world has {world.size} "
            f"ranks: give the axis of the mesh that the world was made of"
        )
    if device_mesh.get_local_rank() != world.rank:
        raise ConfigError(
            f"this process is rank {device_mesh.get_local_rank()} of the mesh, but rank "
            f"{world.rank} of the world"
        )


def _take_from(src: int | None, weight: Tensor, world: "World") -> None:
    if src is not None:
        ops.broadcast(weight.detach(), world=world, src=src)


def _become(module: nn.Module, other: nn.Module) -> nn.Module:
    """Turn `module` itself into `other`: parallelize_module ignores what a style returns."""
    module.__class__ = type(other)
    module.__dict__ = other.__dict__
    return module


def _name_of(module: nn.Module) -> str:
    return f"{type(module).__module__}.{type(module).__qualname__}"
