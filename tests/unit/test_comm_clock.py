"""The clock of communication: which calls run on it, and that messages do not notice."""

import itertools

import pytest
import torch

from tokenfabric import comm_clock
from tokenfabric.channel_clocked import ClockedChannel
from tokenfabric.channel_virtual import VirtualMesh
from tokenfabric.comm_clock import CommClock


@pytest.fixture
def ticking(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time goes on by a second with each look at it."""
    monkeypatch.setattr(comm_clock.time, "perf_counter", itertools.count(0.0).__next__)


@pytest.mark.usefixtures("ticking")
def test_sends_and_waits_run_on_the_clock_and_receives_do_not() -> None:
    mesh = VirtualMesh(2)
    clocks = [CommClock(), CommClock()]
    ends = [ClockedChannel(mesh.channel(rank), clock) for rank, clock in enumerate(clocks)]
    into = ends[1].memory(12)
    receipt = ends[1].receive(0, into, "three numbers")
    assert not receipt.is_ready()
    assert [clock.seconds for clock in clocks] == [0.0, 0.0]
    ends[0].send(1, [torch.tensor([1.0, 2.0, 3.0])], "three numbers")
    ends[0].flush()
    assert receipt.is_ready()
    receipt.wait()
    assert [clock.seconds for clock in clocks] == [2.0, 1.0]
    assert into.view(torch.float32).tolist() == [1.0, 2.0, 3.0]
    assert ends[0].bytes_sent == {1: 12}
    assert (ends[1].rank, ends[1].size) == (1, 2)


@pytest.mark.usefixtures("ticking")
def test_time_counts_when_a_block_ends_by_an_error() -> None:
    clock = CommClock()
    with pytest.raises(KeyError), clock:
        raise KeyError
    with clock:
        assert clock.seconds == 1.0
    assert clock.seconds == 2.0
