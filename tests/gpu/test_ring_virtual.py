"""The ring's engine on one GPU: virtual ranks on its stream, every block and merge a kernel."""

import pytest
import torch

from tests.unit.ring_virtual import NAMES, Case, by_torch, on_one_device, on_virtual_ranks
from tests.unit.test_ring_engine import assert_within_bar

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("strategy", ["q", "q_push", "kv", "kv_bidirectional", "kv_push"])
@pytest.mark.parametrize("partition", ["contiguous", "zigzag"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_virtual_ranks_against_fp64(
    device: torch.device, strategy: str, partition: str, dtype: torch.dtype
) -> None:
    """Out, lse and gradients of 2, 3 and 8 ranks, GQA, causal; fp32 by the tiled implementation."""
    for world_size, tokens in ((2, 64), (3, 37), (8, 130)):
        case = Case(
            world_size=world_size, tokens=tokens, heads_q=4, heads_kv=2, partition=partition,
            strategy=strategy, causal=True, window=None, seed=world_size, dtype=dtype,
        )  # fmt: skip
        got = on_virtual_ranks(case, device=str(device))
        exact, baseline = on_one_device(case, torch.float64), by_torch(case)
        for name in NAMES:
            assert_within_bar(case, name, got[name].cpu(), exact[name], baseline[name])
