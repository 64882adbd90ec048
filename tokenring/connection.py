"""What attention calls of one world share: its channel, and the agreement before anything moves."""

from typing import TYPE_CHECKING

from tokenfabric.channel import Channel
from tokenfabric.channel_distributed import DistributedChannel
from tokenfabric.channel_shared import SharedMemoryChannel
from tokenfabric.hosts import Call

if TYPE_CHECKING:
    from tokenfabric.world import World

CHANNEL_KEY = "tokenring channel"


def agree(world: "World", call: Call) -> None:
    """Compare a call with those of all ranks. Collective.

    Raises:
        MismatchError: they differ; nothing moved, the world stays usable.
        PeerLostError, CommTimeoutError: see `tokenfabric.errors`.
        ConfigError: the world is closed.
    """
    if world.hosts is not None and not world.is_closed:
        world.hosts.agree(call)
    else:
        world.comm.agree(call.operation, call.dtype, call.rows, call.row_elems, call.options)


def channel_of(world: "World") -> Channel:
    """Return the world's channel for attention, made at the first call. Not collective."""
    channel: Channel | None = world.prepared.get(CHANNEL_KEY)
    if channel is None:
        if world.hosts is None:
            channel = SharedMemoryChannel(world)
        else:
            assert world.group is not None, "a world on several hosts has a process group"
            channel = DistributedChannel(world.group, world.timeout_s)
        world.prepared[CHANNEL_KEY] = channel
    return channel
