"""Channels: messages arrive whole, in order, where their receive was posted; losses are named."""

import random
import re
import time
from collections import deque
from collections.abc import Callable

import pytest
import torch

import tokenfabric
from tokenfabric.channel import Channel, Receipt, unpack
from tokenfabric.channel_distributed import DistributedChannel
from tokenfabric.channel_shared import SharedMemoryChannel
from tokenfabric.testing.poison import assert_overwritten, poison
from tokenfabric.testing.spawn import RankGroup, Returned, run_ranks, spawn_plain
from tokenfabric.world import World

Report = Callable[[str], None]

MEMORY_BYTES = 1 << 16
DEATH_SEEN_S = 2.0
DEADLINE_S = 1.5


def make_channel(kind: str, world: World) -> Channel:
    if kind == "shared":
        return SharedMemoryChannel(world.comm)
    assert world.group is not None
    return DistributedChannel(world.group, world.timeout_s)


def message(source: int, target: int, number: int) -> list[torch.Tensor]:
    """Return the parts of a message that say which it is: some empty, some strided."""
    count = (7 * number + source + 3 * target) % 40
    values = torch.arange(2 * count, dtype=torch.float32) + 1000 * source + 100 * target + number
    return [values[::2], torch.full((number % 3, 5), float(source)).bfloat16()]


def check_message(data: torch.Tensor, source: int, target: int, number: int) -> None:
    parts = message(source, target, number)
    got = unpack(data, [(tuple(part.shape), part.dtype) for part in parts])
    for part, expected in zip(got, parts, strict=True):
        assert torch.equal(part, expected)


def num_bytes(source: int, target: int, number: int) -> int:
    return sum(p.numel() * p.element_size() for p in message(source, target, number))


def _rank_everyone_to_everyone(world: World, kind: str, rounds: int) -> None:
    channel = make_channel(kind, world)
    peers = [peer for peer in range(world.size) if peer != world.rank]
    for attempt in range(3):
        memory = poison(channel.memory(MEMORY_BYTES << attempt))
        world.barrier()  # nobody sends before all have poisoned
        offset = 0
        under_way: deque[tuple[int, int, Receipt, torch.Tensor]] = deque()
        sent = dict.fromkeys(peers, 0)
        for number in range(rounds):
            # Issue order is the same on both sides: first the way to higher ranks.
            for distance in range(1, world.size):
                source = (world.rank - distance) % world.size
                size = num_bytes(source, world.rank, number)
                into = memory[offset : offset + size]
                offset = (offset + size + 63) // 64 * 64
                what = f"message {number} of rank {source}"
                under_way.append((source, number, channel.receive(source, into, what), into))
            for distance in range(1, world.size):
                target = (world.rank + distance) % world.size
                parts = message(world.rank, target, number)
                if (number + world.rank) % 5 == 0:
                    time.sleep(0.002)  # a rank that is late now and then, not a synchronisation
                channel.send(target, parts, f"message {number}")
                parts[0].fill_(-1.0)  # the sender's memory is its own again
                sent[target] += num_bytes(world.rank, target, number)
        waited = list(under_way)
        random.Random(world.rank + attempt).shuffle(waited)
        for source, number, receipt, into in waited:
            receipt.wait()
            assert receipt.is_ready()
            check_message(into, source, world.rank, number)
        with pytest.raises(AssertionError, match="never written"):
            assert_overwritten(memory[offset:])
        assert {peer: channel.bytes_sent[peer] for peer in peers} == {
            peer: sent[peer] * (attempt + 1) for peer in peers
        }
        world.barrier()
    channel.close()


@pytest.mark.parametrize(("kind", "size"), [("shared", 2), ("shared", 4), ("distributed", 3)])
def test_messages_of_a_pair_arrive_whole_and_in_order(kind: str, size: int) -> None:
    run_ranks(_rank_everyone_to_everyone, size, kind, 12)


def _rank_meets_a_loss(world: World, report: Report, kind: str, waits_in: str) -> str:
    channel = make_channel(kind, world)
    memory = channel.memory(1 << 10)
    world.barrier()
    report("ready")
    if world.rank == 1:
        time.sleep(60)
    started_s = time.monotonic()
    try:
        if waits_in == "send":
            channel.send(1, [torch.ones(4)], "q block of rank 0 in step 3")
        else:
            channel.receive(1, memory[:16], "q block of rank 1 in step 3").wait()
    except tokenfabric.CommError as error:
        report("told")
        elapsed_s = time.monotonic() - started_s
        return f"{type(error).__name__} of rank {error.peer_rank} after {elapsed_s:.1f} s: {error}"
    return "nothing was raised"


def returned_by(ranks: RankGroup, rank: int) -> str:
    outcome = ranks.outcome(rank)
    assert isinstance(outcome, Returned), f"rank {rank}: {outcome}"
    return str(outcome.value)


@pytest.mark.parametrize(
    ("kind", "waits_in"), [("shared", "send"), ("shared", "receive"), ("distributed", "receive")]
)
def test_a_peer_that_dies_is_named_with_the_message(kind: str, waits_in: str) -> None:
    with spawn_plain(_rank_meets_a_loss, 2, kind, waits_in, timeout_s=60) as ranks:
        ranks.wait_for("ready")
        killed_s = ranks.kill(1)
        ranks.join()
        text = returned_by(ranks, 0)
        assert ranks.marker_time_s(0, "told") - killed_s < DEATH_SEEN_S
    assert re.match(r"PeerLostError of rank 1 .* q block of rank \d in step 3: ", text), text


@pytest.mark.parametrize(
    ("kind", "waits_in"), [("shared", "send"), ("shared", "receive"), ("distributed", "receive")]
)
def test_a_silent_peer_is_named_at_the_deadline(kind: str, waits_in: str) -> None:
    with spawn_plain(
        _rank_meets_a_loss, 2, kind, waits_in, timeout_s=60, comm_timeout_s=DEADLINE_S
    ) as ranks:
        ranks.join([0])
        text = returned_by(ranks, 0)
    pattern = r"CommTimeoutError of rank 1 after 1\.[5-9] s: q block of rank \d in step 3: "
    assert re.match(pattern, text), text


def _rank_refuses(world: World) -> None:
    channel = SharedMemoryChannel(world.comm)
    with pytest.raises(tokenfabric.ConfigError, match="receive memory"):
        channel.send(1 - world.rank, [torch.ones(2)], "early")
    memory = channel.memory(256)
    channel.receive(1 - world.rank, memory[:8], "one")
    with pytest.raises(tokenfabric.ConfigError, match="on their way"):
        channel.memory(1 << 20)


def test_memory_is_there_before_messages_and_stays_while_they_travel() -> None:
    run_ranks(_rank_refuses, 2)
