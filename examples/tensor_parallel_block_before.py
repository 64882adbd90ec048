"""A tensor-parallel transformer block in plain PyTorch. Its twin is tensor_parallel_block_after.py.

torchrun --standalone --nproc-per-node 2 examples/tensor_parallel_block_before.py
"""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

TOKENS, HIDDEN, HEADS, INTERMEDIATE, EPS = 16, 512, 8, 1536, 1e-6


class Block(nn.Module):
    """One rank's heads and one rank's slice of the MLP; both end in a partial sum."""

    def __init__(self, rank: int, size: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)  # all ranks cut their share from equal weights

        def share(*shape: int, dim: int) -> Tensor:
            full = torch.randn(shape, generator=generator) * HIDDEN**-0.5
            return full.tensor_split(size, dim)[rank].contiguous()

        self.qkv = share(3, HEADS, HIDDEN // HEADS, HIDDEN, dim=1)
        self.out = share(HIDDEN, HEADS, HIDDEN // HEADS, dim=1)
        self.gate_up = share(2, INTERMEDIATE, HIDDEN, dim=1)
        self.down = share(HIDDEN, INTERMEDIATE, dim=1)
        self.mlp_norm = nn.RMSNorm(HIDDEN, EPS)
        self.next_norm = nn.RMSNorm(HIDDEN, EPS)

    def attention(self, normed: Tensor) -> Tensor:
        q, k, v = torch.einsum("tc,nhdc->nhtd", normed, self.qkv)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return torch.einsum("htd,chd->tc", mixed, self.out)

    def mlp(self, normed: Tensor) -> Tensor:
        gate, up = torch.einsum("tc,nic->nti", normed, self.gate_up)
        return (F.silu(gate) * up) @ self.down.T

    def forward(self, normed: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        partial = self.attention(normed)
        dist.all_reduce(partial)
        residual = residual + partial
        partial = self.mlp(self.mlp_norm(residual))
        dist.all_reduce(partial)
        residual = residual + partial
        return self.next_norm(residual), residual


@torch.no_grad()
def main() -> None:
    dist.init_process_group("gloo")
    x = torch.randn(TOKENS, HIDDEN, generator=torch.Generator().manual_seed(1))
    normed, _ = Block(dist.get_rank(), dist.get_world_size())(x, x)
    if dist.get_rank() == 0:
        print("last token:", " ".join(f"{value:.4f}" for value in normed[-1, :6]))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
