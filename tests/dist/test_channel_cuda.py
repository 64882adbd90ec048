"""Messages by copy engines between processes, over a driver in software (rung L2).

No GPU runs here: order, credits, reuse of memory, deadlines and what is refused are the native
code's, the streams are threads.
"""

import re
import time
from collections import deque
from collections.abc import Callable

import pytest
import torch

import tokenfabric
from tests.dist.software_gpus import SoftwareChannel
from tests.dist.test_channel import check_message, message, num_bytes, returned_by
from tokenfabric.channel import Receipt
from tokenfabric.testing.poison import poison
from tokenfabric.testing.spawn import run_ranks, spawn_plain
from tokenfabric.world import World

Report = Callable[[str], None]
DEADLINE_S = 1.5
DEATH_SEEN_S = 2.0
SLOT_BYTES = 1024
# Barriers in which a message that need not wait would have come many times over.
MANY_BARRIERS = 200


def _rank_exchanges(world: World, driver: str, rounds: int) -> None:
    """Two slots for each peer are used again and again; the memory grows between two attempts."""
    channel = SoftwareChannel(world, driver)
    peers = [(world.rank + distance) % world.size for distance in range(1, world.size)]
    for attempt in range(3):
        memory = poison(channel.memory(2 * world.size * SLOT_BYTES << 7 * attempt))
        world.barrier()
        coming: dict[int, deque[tuple[Receipt, torch.Tensor]]] = {peer: deque() for peer in peers}
        for number in range(rounds + 2):
            for peer in peers:
                if number >= 2:
                    receipt, into = coming[peer].popleft()
                    receipt.wait()
                    check_message(into, peer, world.rank, number - 2)
                if number < rounds:
                    start = (2 * peer + number % 2) * SLOT_BYTES
                    into = memory[start : start + num_bytes(peer, world.rank, number)]
                    what = f"message {number} of rank {peer}"
                    coming[peer].append((channel.receive(peer, into, what), into))
            for peer in peers:
                if number < rounds:
                    channel.send(peer, message(world.rank, peer, number), f"message {number}")
        channel.flush()
        for peer in peers:
            sent = sum(num_bytes(world.rank, peer, number) for number in range(rounds))
            assert channel.bytes_sent[peer] == sent * (attempt + 1)
        world.barrier()
    channel.close()


@pytest.mark.parametrize("size", [2, 3])
def test_messages_of_a_pair_arrive_whole_and_in_order(driver: str, size: int) -> None:
    run_ranks(_rank_exchanges, size, driver, 40)


def _rank_holds_its_credit(world: World, driver: str) -> None:
    channel = SoftwareChannel(world, driver)
    memory = poison(channel.memory(SLOT_BYTES))
    before = memory.clone()
    world.barrier()
    if world.rank == 0:
        channel.driver.hold(channel.stream)  # as a kernel that still reads the memory
        receipt = channel.receive(1, memory[:64], "early")
    else:
        channel.send(0, [torch.full((16,), 7.0)], "early")
    for _ in range(MANY_BARRIERS):
        world.barrier()
        assert torch.equal(memory, before)
    if world.rank == 0:
        channel.driver.release()
        receipt.wait()
        assert (memory[:64].view(torch.float32) == 7).all()
    channel.flush()
    world.barrier()
    channel.close()


def test_nothing_is_written_before_the_receivers_stream_is_done_with_the_memory(
    driver: str,
) -> None:
    run_ranks(_rank_holds_its_credit, 2, driver)


def _rank_passes_on(world: World, driver: str) -> None:
    channel = SoftwareChannel(world, driver)
    slot = channel.memory(SLOT_BYTES)[:64]
    world.barrier()
    if world.rank == 0:
        channel.send(1, [torch.full((16,), 1.0)], "first")
        channel.send(1, [torch.full((16,), 2.0)], "second")
    elif world.rank == 1:
        channel.receive(0, slot, "first").wait()
        channel.send(2, [slot], "first, passed on")
        second = channel.receive(0, slot, "second")
    else:
        channel.driver.hold(channel.stream)
        passed_on = channel.receive(1, slot, "first, passed on")
    for _ in range(MANY_BARRIERS):
        world.barrier()
    if world.rank == 2:
        channel.driver.release()
        passed_on.wait()
        assert (slot.view(torch.float32) == 1).all()
    elif world.rank == 1:
        second.wait()
        assert (slot.view(torch.float32) == 2).all()
    channel.flush()
    world.barrier()
    channel.close()


def test_memory_that_is_passed_on_is_granted_when_it_has_left(driver: str) -> None:
    run_ranks(_rank_passes_on, 3, driver)


def _rank_meets_a_loss(world: World, report: Report, driver: str) -> str:
    channel = SoftwareChannel(world, driver)
    memory = channel.memory(SLOT_BYTES)
    memory.zero_()
    world.barrier()
    report("ready")
    if world.rank == 1:
        time.sleep(60)
    started_s = time.monotonic()
    into = memory[:16]
    receipt = channel.receive(1, into, "q of rank 1 in step 3")
    receipt.wait()
    elapsed_s = time.monotonic() - started_s
    report("went on")
    assert into.view(torch.float32).isnan().all(), "the stream goes on over NaN"
    assert not memory[16:].any()
    failure = channel.failure()
    assert failure is not None
    assert world.broken is not None
    for call in (
        channel.check,
        lambda: channel.memory(1),
        lambda: channel.receive(1, into, "more"),
        channel.flush,
    ):
        with pytest.raises(type(failure), match="q of rank 1 in step 3"):
            call()
    with pytest.raises(type(failure)):
        world.barrier()
    channel.close()
    return f"{type(failure).__name__} of rank {failure.peer_rank} after {elapsed_s:.1f} s"


def test_a_silent_peer_is_named_at_the_deadline_and_its_message_is_nan(driver: str) -> None:
    with spawn_plain(
        _rank_meets_a_loss, 2, driver, timeout_s=60, comm_timeout_s=DEADLINE_S
    ) as ranks:
        ranks.join([0])
        text = returned_by(ranks, 0)
    assert re.match(r"CommTimeoutError of rank 1 after 1\.[5-9] s", text), text


def test_a_peer_that_dies_is_named_before_the_deadline(driver: str) -> None:
    with spawn_plain(_rank_meets_a_loss, 2, driver, timeout_s=60) as ranks:
        ranks.wait_for("ready")
        killed_s = ranks.kill(1)
        ranks.join()
        text = returned_by(ranks, 0)
        assert ranks.marker_time_s(0, "went on") - killed_s < DEATH_SEEN_S
    assert text.startswith("PeerLostError of rank 1"), text


def _rank_is_refused(world: World, driver: str) -> None:
    channel = SoftwareChannel(world, driver)
    ones = [torch.ones(16)]
    with pytest.raises(tokenfabric.ConfigError, match="receive memory"):
        channel.send(1 - world.rank, ones, "early")
    memory = channel.memory(SLOT_BYTES)
    channel.driver.begin_capture(channel.stream)
    for call in (
        channel.check,
        lambda: channel.receive(1 - world.rank, memory[:64], "captured"),
        channel.flush,
    ):
        with pytest.raises(tokenfabric.ConfigError, match="cannot be captured in a CUDA graph"):
            call()
    channel.driver.end_capture(channel.stream)
    # The refused receive has granted nothing: this is the first message.
    receipt = channel.receive(1 - world.rank, memory[:64], "one")
    with pytest.raises(tokenfabric.ConfigError, match="on their way"):
        channel.memory(1 << 20)
    channel.send(1 - world.rank, ones, "one")
    receipt.wait()
    assert (memory[:64].view(torch.float32) == 1).all()
    channel.receive(1 - world.rank, memory[:32], "of another order")
    with pytest.raises(AssertionError, match="64 bytes for a receive of 32"):
        channel.send(1 - world.rank, ones, "two")
    world.barrier()
    channel.close()


def test_capture_other_orders_and_early_calls_are_refused(driver: str) -> None:
    run_ranks(_rank_is_refused, 2, driver)
