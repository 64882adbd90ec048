"""What attention calls of one world share: its channel, and what surrounds a collective."""

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from tokenfabric.channel import Channel
from tokenfabric.channel_hosts import HostsChannel
from tokenfabric.channel_shared import SharedMemoryChannel
from tokenfabric.errors import CommError
from tokenfabric.hosts import Call

if TYPE_CHECKING:
    from tokenfabric.world import World


@contextlib.contextmanager
def collective(world: "World", call: Call) -> Iterator[Channel]:
    """Agree on `call` with all ranks, then let the body exchange messages. Collective.

    Whatever ends the body early breaks the world on every rank: the others wait for messages that
    will not come, and shall not wait until the deadline.

    Raises:
        MismatchError: the ranks differ; raised before the body, and the world stays usable.
        PeerLostError, CommTimeoutError: see `tokenfabric.errors`.
        ConfigError: the world is closed.
    """
    if world.hosts is not None and not world.is_closed:
        with world.hosts.collective(call):
            yield channel_of(world)
            channel_of(world).flush()
        return
    comm = world.comm
    comm.agree(call.operation, call.dtype, call.rows, call.row_elems, call.options)
    try:
        yield channel_of(world)
        channel_of(world).flush()
    except CommError:
        raise  # shared memory has told the others
    except BaseException:
        comm.abort()
        raise


def channel_of(world: "World") -> Channel:
    """Return the world's channel, opened by the first use. Not collective."""
    if world.channel is None:
        if world.hosts is None:
            world.channel = SharedMemoryChannel(world.comm)
        else:
            assert world.group is not None, "a world on several hosts has a process group"
            world.channel = HostsChannel(world.hosts, world.group)
    return world.channel
