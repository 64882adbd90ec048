"""The checks of tests/gpu/model_checks.py are right: they pass on fakes of the kernels, and fail
when what they check is wrong.
"""

import copy
from typing import Any

import pytest
import torch

from tests.dist.llama_models import SMOLLM2_LIKE, ModelCase
from tests.gpu.model_checks import check_generation, check_graphs, check_passes
from tests.unit.fake_cuda import FakeCuda, run_threads
from tests.unit.gpu_models import SLOT_BYTES, complete, put_fakes
from tokenweave.cuda import graphs
from tokenweave.cuda.graphs import CallGraphs


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    """Put fakes in the place of launches, streams and captures."""
    # Ranks are threads here, which have one random state.
    made = SMOLLM2_LIKE.model()
    monkeypatch.setattr(ModelCase, "model", lambda self, seed=0: copy.deepcopy(made))
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: torch.get_rng_state())
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, device: None)
    return put_fakes(monkeypatch, "two_shot")


def run(fake: FakeCuda, size: int, check: Any) -> None:
    """Run a check on ranks that are threads."""

    def of_rank(world: Any) -> None:
        complete(world)
        check(world, SMOLLM2_LIKE)

    run_threads(fake, size, SLOT_BYTES, of_rank)


@pytest.mark.parametrize("size", [1, 2])
def test_checks_pass(fake: FakeCuda, size: int) -> None:
    """Worlds of one and of two."""
    run(fake, size, check_passes)
    run(fake, size, check_graphs)


def test_generation_passes(fake: FakeCuda) -> None:
    """In a world of one: threads draw from one random state in turns."""
    run(fake, 1, check_generation)


def test_stale_inputs_are_noticed(fake: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    """A replay that does not get this pass's tokens."""
    monkeypatch.setattr(graphs._Static, "take", lambda self, tensor: None)
    with pytest.raises(AssertionError):
        run(fake, 1, check_graphs)


def test_a_graph_that_is_never_replayed_is_noticed(
    fake: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Launches one by one have the right bits too."""
    monkeypatch.setattr(CallGraphs, "run", lambda self, key, inputs, call: (call(inputs), False))
    with pytest.raises(AssertionError):
        run(fake, 1, check_graphs)
