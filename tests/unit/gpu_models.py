"""Models on worlds of GPUs whose kernels are torch on the CPU and whose ranks are threads."""

import copy
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.unit.fake_cuda import FakeCuda, run_threads
from tests.unit.stream_trace import NotedStreams, Recorder, Trace
from tokenfabric import native
from tokenweave import passes
from tokenweave.config import WeaveConfig
from tokenweave.cuda import plan as cuda_plan
from tokenweave.integrations import pass_graphs
from tokenweave.integrations.sharded_model import attach, plan_sharding

SLOT_BYTES = 1 << 20


class Captures:
    """Implements Capture; `made` counts."""

    def __init__(self) -> None:
        self.made = 0

    def __call__(self, call: Callable[[], Tensor]) -> Callable[[], Tensor]:
        self.made += 1
        return call


def put_fakes(monkeypatch: pytest.MonkeyPatch, algorithm: str) -> FakeCuda:
    """Put fakes in the place of launches and streams, and have reductions done by `algorithm`."""
    fake = FakeCuda()
    monkeypatch.setattr(native, "cuda", fake, raising=False)
    monkeypatch.setattr(pass_graphs, "CudaCapture", Captures)
    monkeypatch.setattr(passes, "CudaStreams", lambda device: NotedStreams(Trace()))
    # A message of a tiny model is one that one-shot is made for.
    monkeypatch.setattr(cuda_plan, "_ONE_BARRIER_US", 4.5 if algorithm == "one_shot" else 1e6)
    return fake


def complete(world: Any) -> None:
    """Give a world of threads what models ask of one besides."""
    world.num_hosts, world.num_threads, world.is_closed, world.broken = 1, 1, False, None


def parallelized(model: Any, world: Any, config: WeaveConfig) -> Any:
    """Return this rank's share of a copy of the model, as `parallelize` makes it."""
    model = copy.deepcopy(model)
    complete(world)
    sharding = plan_sharding(model, world, None, has_weights=True)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(False)
        if (shard := sharding.shards[name]) is not None:
            parameter.data = shard.take(parameter.data, world.rank)
    return attach(model, world, config, sharding)


def on_ranks(
    fake: FakeCuda, size: int, model: Any, config: WeaveConfig, fn: Callable[[Any, Any], Any]
) -> list[Any]:
    """Return what `fn(model, world)` returns on every rank."""

    def of_rank(world: Any) -> Any:
        return fn(parallelized(model, world, config), world)

    return run_threads(fake, size, SLOT_BYTES, of_rank)


def noted(model: Any, call: Callable[[], Any]) -> SimpleNamespace:
    """Return `result` of a call of the model, and the `trace` of what it issued."""
    runner = model.tokenweave.passes.split_runner
    trace = Trace()
    streams = runner._streams
    streams.trace, streams.now = trace, 0
    recorder = Recorder(streams)
    with torch.no_grad(), recorder:
        result = call()
    recorder.finish()
    trace.begin(0)  # what the caller does next
    return SimpleNamespace(result=result, trace=trace)
