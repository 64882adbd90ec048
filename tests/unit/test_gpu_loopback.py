"""The share of a rank that benchmarks/bench_gpu_ring.py times: without a GPU it walks its plan on
plain memory, streams and copies being the host's.
"""

import ctypes
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks.gpu_loopback import Share, prepare
from tokenfabric import native
from tokenring.call import choose_kernels

SHARE = Share(ranks=4, tokens=64, heads_q=4, heads_kv=2, head_dim=16)


class _Stream:
    """Everything is done when it is asked for."""

    cuda_stream = 0

    def __init__(self, device: Any = None) -> None: ...
    def wait_stream(self, other: Any) -> None: ...
    def wait_event(self, event: Any) -> None: ...
    def record(self, stream: Any) -> None: ...


@pytest.fixture(autouse=True)
def copied_bytes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    copied: list[int] = []

    def copy(to: int, from_: int, num_bytes: int, stream: int) -> None:
        copied.append(num_bytes)
        ctypes.memmove(to, from_, num_bytes)

    monkeypatch.setattr(native, "cuda", SimpleNamespace(copy=copy), raising=False)
    monkeypatch.setattr(torch.cuda, "Stream", _Stream)
    monkeypatch.setattr(torch.cuda, "Event", _Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", _Stream)
    return copied


def test_all_work_is_done_and_all_bytes_are_moved(copied_bytes: list[int]) -> None:
    """The kernel beside it has as many pairs, and the result of the walk is whole."""
    loopback = prepare(SHARE, torch.device("cpu"))
    part = loopback.plan.of_rank(0)
    lse, out = loopback.walk()  # type: ignore[misc]
    assert out.shape == (1, SHARE.tokens, SHARE.heads_q, SHARE.head_dim)
    assert out.isfinite().all()
    assert lse.isfinite().all()
    received = sum(arrival.transfer.num_bytes for arrival in part.arrivals)
    assert sum(copied_bytes) == part.bytes_sent + received > 0
    (partial,) = loopback.kernel()  # type: ignore[misc]
    assert partial.out.shape == out.shape
    pairs = sum(compute.num_pairs for compute in part.computes)
    whole = SHARE.ranks * SHARE.tokens
    assert pairs * SHARE.ranks == pytest.approx(whole * (whole + 1) / 2, rel=0.1)
    assert choose_kernels(SHARE.attention(), loopback.plan)[1].name == "flash_cpu"
