"""What WeaveConfig asks for, and the plans that become of it on a world of CPU ranks."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tokenfabric.errors import ConfigError
from tokenfabric.world import World
from tokenweave import WeaveConfig
from tokenweave.communication_thread import CommunicationThread
from tokenweave.device_tables import load_device, published_models
from tokenweave.passes import Passes, PassShape
from tokenweave.split import plan_split
from tokenweave.stage_runner import InOrder

SHAPE = PassShape(
    num_sequences=3, num_tokens=11, hidden=64, dtype=torch.float32, num_layers=2, keeps_hidden=False
)


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with World(None, num_threads=1) as world:
        yield world


@pytest.mark.parametrize("split", [0, -3, True, 2.5, "always", None])
def test_a_split_that_does_not_exist_is_refused(split: Any) -> None:
    """The message names the value and what there is."""
    with pytest.raises(ConfigError, match=r"auto, never or a number of tokens .* got"):
        WeaveConfig(split=split)


def test_options_that_do_not_exist_are_refused() -> None:
    """The message names the value and what there is."""
    with pytest.raises(ConfigError, match="overlap must be one of auto, on, off; got 'always'"):
        WeaveConfig(overlap="always")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="graphs must be one of auto, off; got True"):
        WeaveConfig(graphs=True)  # type: ignore[arg-type]


@given(
    num_sequences=st.integers(1, 5),
    num_tokens=st.integers(1, 9),
    split=st.integers(1, 50),
    cuts=st.sampled_from(["anywhere", "between sequences", "nowhere"]),
)
def test_a_number_splits_there_or_the_plan_says_why_not(
    world: World, num_sequences: int, num_tokens: int, split: int, cuts: Any
) -> None:
    """Halves cover the batch; boundaries respect what can be cut."""
    batch = replace(
        SHAPE,
        num_sequences=num_sequences,
        num_tokens=num_tokens,
        cuts=cuts,
        why="" if cuts == "anywhere" else "because of the test",
    )
    plan = Passes(world, WeaveConfig(split=split)).plan(batch)
    num_rows = num_sequences * num_tokens
    assert plan.num_tokens == num_rows
    rows = [plan.tokens_of(half) for half in plan.halves]
    assert [i for start, stop in rows for i in range(start, stop)] == list(range(num_rows))
    if cuts == "nowhere" or num_tokens == 1 or split >= num_rows:
        assert not plan.is_split
    elif cuts == "anywhere":
        assert plan.boundary == split
    else:
        assert plan.boundary % num_tokens == 0
        assert plan.is_split == (split >= num_tokens)
    if cuts != "anywhere" and not plan.is_split and num_tokens > 1 and split < num_rows:
        assert "because of the test" in plan.explain()
    assert plan.num_blocks == 4


@pytest.mark.parametrize("split", ["auto", "never"])
def test_cpu_ranks_split_nothing_of_their_own_accord(world: World, split: Any) -> None:
    """The plan says why, and is made once."""
    passes = Passes(world, WeaveConfig(split=split))
    plan = passes.plan(SHAPE)
    assert plan.kind == "none"
    assert ("CPU" if split == "auto" else "split='never'") in plan.explain()
    assert passes.plan(replace(SHAPE)) is plan


def test_the_planner_agrees_that_cpu_ranks_gain_nothing() -> None:
    """With the table of CPUs it splits no model at any size."""
    cpu = load_device("cpu")
    for shape in published_models().values():
        for num_tokens in (1, 2, 257, 4096, 65536):
            for world_size in (2, 4):
                plan = plan_split(num_tokens, shape=shape, world_size=world_size, device=cpu)
                assert plan.kind == "fused_only"


def test_options_can_be_changed_for_a_while(world: World) -> None:
    """Plans and runner follow, and come back after an error too."""
    passes = Passes(world, WeaveConfig(overlap="off"))
    assert isinstance(passes.split_runner, InOrder)

    def fail() -> None:
        with passes.asked(split=7, overlap="on"):
            assert passes.plan(SHAPE).boundary == 7
            assert isinstance(passes.split_runner, CommunicationThread)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert not passes.plan(SHAPE).is_split
    assert isinstance(passes.split_runner, InOrder)
    with pytest.raises(ConfigError, match="split must be"), passes.asked(split=-1):
        pytest.fail("not reached")


def test_overlap_needs_cores(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread for blocks and one for reductions; on a single core there is none to spare."""
    for num_cores, has_thread in ((1, False), (2, True)):
        cores = (tuple(range(num_cores)),)
        monkeypatch.setattr(world, "placement", replace(world.placement, cores_of_rank=cores))
        monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
        assert isinstance(Passes(world).split_runner, CommunicationThread) == has_thread
