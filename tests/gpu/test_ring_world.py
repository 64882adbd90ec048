"""Ring attention between processes that share a GPU: copies into each other's memory, signals by
stream memory operations, flash kernels (rung L4).
"""

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.distributed as dist

from tests.dist.test_ring_attention import FIXED, attend
from tests.gpu.ranks import run_on_one_gpu
from tests.unit.ring_virtual import NAMES, Case, by_torch, on_one_device
from tests.unit.test_ring_engine import assert_within_bar
from tokenfabric.errors import CommTimeoutError, ConfigError
from tokenfabric.testing.tolerance import assert_same_bits
from tokenfabric.world import World
from tokenring.attention import ring_attention
from tokenring.cache import RingCache
from tokenring.connection import channel_of
from tokenring.decode import ring_decode
from tokenring.reference import attention as reference_attention
from tokenring.sharding import shard, unshard
from tokenring.varlen import packed_layout, ring_attention_varlen

pytestmark = pytest.mark.gpu


def _rank_is_exact(world: World, cases: list[Case]) -> None:
    for case in cases:
        got = attend(world, case)
        exact, usual = on_one_device(case, torch.float64), by_torch(case)
        for name in NAMES:
            assert_within_bar(case, name, got[name], exact[name], usual[name])
    assert world.broken is None


@pytest.mark.parametrize("size", [2, 3])
def test_every_strategy_against_fp64(device: torch.device, size: int) -> None:
    """Out, lse and gradients, causal, GQA; bf16 by the flash kernels, fp32 by the tiled ones."""
    base = Case(world_size=size, partition="zigzag", causal=True, dtype=torch.bfloat16)
    cases = [replace(base, strategy=strategy, seed=i) for i, strategy in enumerate(FIXED)]
    cases += [
        replace(base, tokens=1, strategy="auto"),
        replace(base, tokens=97, strategy="auto", window=5),
        replace(base, tokens=300, strategy="q_push", dtype=torch.float32),
    ]
    run_on_one_gpu(_rank_is_exact, size, cases)


def _rank_streams(world: World) -> None:
    """Calls alternate between two streams; the bits are those of one stream."""
    torch.manual_seed(world.rank)
    q, k, v = (torch.randn(1, 256, 4, 64, device=world.device).bfloat16() for _ in range(3))

    def call() -> torch.Tensor:
        return ring_attention(q, k, v, world=world, causal=True)

    first = call()
    streams = [torch.cuda.Stream(), torch.cuda.Stream()]
    torch.cuda.synchronize()
    found = []
    for step in range(6):
        with torch.cuda.stream(streams[step % 2]):
            found.append(call())
    torch.cuda.synchronize()
    for it in found:
        assert_same_bits(it, first, what="out")


def rank_varlen_and_decode(world: World) -> None:
    """Three documents, one of them empty, and then a cache; on the world's device."""
    random = torch.Generator().manual_seed(3)
    starts = [0, 5, 5, 70]
    q, k, v = (torch.randn(70, heads, 64, generator=random).bfloat16() for heads in (4, 2, 2))
    layout = packed_layout(starts, world.size)
    own = [shard(x.to(world.device), 0, world=world, layout=layout) for x in (q, k, v)]
    out = ring_attention_varlen(*own, starts, world=world, causal=True)
    found = unshard(out, 0, world=world, layout=layout).cpu()
    for start, stop in ((0, 5), (5, 70)):
        exact = _causal(q[start:stop], k[start:stop], v[start:stop])
        torch.testing.assert_close(found[start:stop].double(), exact, rtol=2**-6, atol=2**-6)

    cache = RingCache(world, num_layers=1)
    for row in range(40):
        new = [x[None, row : row + 1].to(world.device) for x in (k, v)]
        cache.append_replicated(*new)
    decoded = ring_decode(q[None, 39:40].to(world.device), cache, world=world).cpu()
    exact = _causal(q[:40], k[:40], v[:40])[39:]
    torch.testing.assert_close(decoded[0].double(), exact, rtol=2**-6, atol=2**-6)


# The bf16 kernels round once, the merge once: within 2**-6 of values around 1.
def _causal(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    mask = torch.ones(len(q), len(k), dtype=torch.bool).tril()
    return reference_attention(*(x[None].double() for x in (q, k, v)), mask=mask)[0][0]


def _rank_loses_keys(world: World) -> str:
    ones = torch.ones(1, 64, 2, 64, device=world.device, dtype=torch.bfloat16)

    def call() -> torch.Tensor:
        return ring_attention(ones, ones, ones, world=world, strategy="kv_push")

    assert torch.equal(call(), ones)
    torch.cuda.synchronize()
    dist.barrier(world.group)
    channel: Any = channel_of(world)
    if world.rank == 1:
        channel.send = lambda peer, parts, what: None
        call()
        dist.barrier(world.group)
        return "sent nothing"
    out = call()
    torch.cuda.synchronize()
    assert out.isnan().all()
    assert isinstance(world.broken, CommTimeoutError)
    with pytest.raises(CommTimeoutError, match=r"kv of rank 1 in step \d") as raised:
        call()
    assert raised.value.peer_rank == 1
    dist.barrier(world.group)
    return "raised"


def test_a_message_that_does_not_come_is_nan_and_an_error(device: torch.device) -> None:
    """The watchdog ends the stream's wait; the error names step, tensor and peer."""
    assert run_on_one_gpu(_rank_loses_keys, 2, comm_timeout_s=3.0) == ["raised", "sent nothing"]


def _rank_captures(world: World) -> None:
    ones = torch.ones(1, 64, 2, 64, device=world.device, dtype=torch.bfloat16)
    for _ in range(2):  # before the channel is opened, and after
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            with pytest.raises(ConfigError, match="CUDA graph"):
                ring_attention(ones, ones, ones, world=world)
            ones.add_(0)  # torch warns of a graph without anything in it
        assert torch.equal(ring_attention(ones, ones, ones, world=world), ones)


def _rank_refuses(world: World) -> None:
    there = torch.ones(1, 8, 2, 64)
    with pytest.raises(ConfigError, match="on cpu, but this world is on cuda"):
        ring_attention(there, there, there, world=world)


def _rank_calls(world: World) -> None:
    _rank_captures(world)
    _rank_refuses(world)
    _rank_streams(world)
    rank_varlen_and_decode(world)
    assert world.broken is None


def test_calls_of_every_kind_on_one_world(device: torch.device) -> None:
    """Refusals harm nothing; two streams in turns; packed documents; a cache. Few ranks are
    started, because that takes most of the time.
    """
    run_on_one_gpu(_rank_calls, 2)
