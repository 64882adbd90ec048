"""The block of tensor_parallel_block_before.py, written for one process and cut by torch's styles.

torchrun --standalone --nproc-per-node 2 examples/tensor_parallel_block_styles.py
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

import tokenfabric
import tokenweave

TOKENS, HIDDEN, HEADS, INTERMEDIATE, EPS = 16, 512, 8, 1536, 1e-6


class Block(nn.Module):
    """A complete block. Its norms take a partial sum and the residual once they are fused."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)

        def linear(weight: Tensor) -> nn.Linear:
            layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
            layer.weight = nn.Parameter(weight.contiguous(), requires_grad=False)
            return layer

        def full(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator) * HIDDEN**-0.5

        self.q, self.k, self.v = (linear(w.flatten(0, 1)) for w in full(3, HEADS, 64, HIDDEN))
        self.out = linear(full(HIDDEN, HEADS, 64).flatten(1))
        self.gate, self.up = (linear(w) for w in full(2, INTERMEDIATE, HIDDEN))
        self.down = linear(full(HIDDEN, INTERMEDIATE))
        self.mlp_norm, self.next_norm = nn.RMSNorm(HIDDEN, EPS), nn.RMSNorm(HIDDEN, EPS)

    def forward(self, normed: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        q, k, v = (
            p(normed).unflatten(-1, (-1, 64)).transpose(0, 1) for p in (self.q, self.k, self.v)
        )
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        normed, residual = self.mlp_norm(self.out(mixed.transpose(0, 1).flatten(1)), residual)
        return self.next_norm(self.down(F.silu(self.gate(normed)) * self.up(normed)), residual)


@torch.no_grad()
def main() -> None:
    with tokenfabric.init() as world:
        plan = {name: ColwiseParallel() for name in ("q", "k", "v", "gate", "up")}
        plan |= {name: tokenweave.PartialRowwiseParallel(world) for name in ("out", "down")}
        plan |= {name: tokenweave.FusedNormParallel(world) for name in ("mlp_norm", "next_norm")}
        block = parallelize_module(Block(), init_device_mesh("cpu", (world.size,)), plan)
        x = torch.randn(TOKENS, HIDDEN, generator=torch.Generator().manual_seed(1))
        normed, _ = block(x, x)
        if world.rank == 0:
            print("last token:", " ".join(f"{value:.4f}" for value in normed[-1, :6]))


if __name__ == "__main__":
    main()
