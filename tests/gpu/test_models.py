"""Tiny models on GPUs: a world of one, and ranks that share this one. Rungs L3 and L4."""

from pathlib import Path
from typing import Any, Literal

import pytest
import torch
import torch.distributed as dist

import tokenfabric
import tokenweave
from tests.dist.llama_models import SMOLLM2_LIKE, ModelCase
from tests.gpu.model_checks import (
    LONG,
    TOLERANCE,
    WITH_WINDOWS,
    check_generation,
    check_graphs,
    check_passes,
    prefer,
)
from tests.gpu.ranks import run_on_one_gpu
from tokenfabric.errors import CommTimeoutError
from tokenfabric.world import World

pytestmark = pytest.mark.gpu


ALGORITHMS: tuple[Literal["one_shot", "two_shot"], ...] = ("one_shot", "two_shot")


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("case", [SMOLLM2_LIKE, LONG, *WITH_WINDOWS], ids=str)
def test_world_of_one(
    device: torch.device, case: ModelCase, algorithm: Literal["one_shot", "two_shot"]
) -> None:
    """Two streams of one GPU, graphs, generate()."""
    with prefer(algorithm), tokenfabric.init(device="cuda") as world:
        check_passes(world, case)
        if case not in WITH_WINDOWS:
            check_graphs(world, case)
        check_generation(world, case)


def _rank_models(world: World, path: str) -> None:
    # Processes take turns on the GPU, which makes each reduction milliseconds.
    check_passes(world, SMOLLM2_LIKE)
    with prefer("two_shot"):
        check_passes(world, LONG)
        check_graphs(world, SMOLLM2_LIKE)
    check_graphs(world, SMOLLM2_LIKE)
    check_generation(world, SMOLLM2_LIKE)
    _check_loading(world, path)


@torch.no_grad()
def _check_loading(world: World, path: str) -> None:
    model: Any = tokenweave.from_pretrained(path, world)
    assert {it.device for it in (*model.parameters(), *model.buffers())} == {world.device}
    assert model.tokenweave.load_report.share < 0.9
    ids = torch.arange(3, 13, device=world.device)[None]
    expected = SMOLLM2_LIKE.model().to(world.device)(ids).logits
    torch.testing.assert_close(model(ids).logits, expected, atol=TOLERANCE, rtol=TOLERANCE)


def test_processes_that_share_this_gpu(device: torch.device, tmp_path: Path) -> None:
    """Passes, split and whole; graphs between launches from the host; generate(); shares that are
    read to the GPU. In one go, since starting processes takes longest.
    """
    SMOLLM2_LIKE.model().save_pretrained(tmp_path)
    run_on_one_gpu(_rank_models, 2, str(tmp_path))


@torch.no_grad()
def _rank_missing(world: World) -> str:
    model: Any = tokenweave.parallelize(SMOLLM2_LIKE.model(), world)
    ids = torch.tensor([[5]], device=world.device)
    for _ in range(3):
        model.model(ids, use_cache=False)
    torch.cuda.synchronize()
    assert model.tokenweave.communication.num_replays == 1
    world.barrier()
    if world.rank == 1:
        dist.barrier(world.group)
        return "absent"
    normed = model.model(ids, use_cache=False).last_hidden_state
    torch.cuda.synchronize()
    assert normed.isnan().all()
    with pytest.raises(CommTimeoutError) as raised:
        model.model(ids, use_cache=False)
    assert raised.value.peer_rank == 1
    dist.barrier(world.group)
    return "raised"


def test_replay_without_a_rank_is_an_error(device: torch.device) -> None:
    """No hang and no numbers; raised by the next call."""
    found = run_on_one_gpu(_rank_missing, 2, comm_timeout_s=3.0)
    assert found == ["raised", "absent"]


def test_layers_on_two_streams_need_no_more_memory(device: torch.device) -> None:
    """Split passes allocate nothing that stays: the tenth takes as much as the second."""
    ids = torch.arange(3, 120, device=device)[None]
    with tokenfabric.init(device="cuda") as world, torch.no_grad():
        model: Any = tokenweave.parallelize(LONG.model(), world)
        reserved = []
        with model.tokenweave.passes.asked(split=60, overlap="on", graphs="off"):
            for _ in range(10):
                model(ids, use_cache=False)
                torch.cuda.synchronize()
                reserved.append(torch.cuda.memory_reserved())
        assert reserved[-1] == reserved[1]
