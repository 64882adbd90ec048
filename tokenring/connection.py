"""What attention calls of one world share: its channel, and what surrounds a collective."""

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch

from tokenfabric.channel import Channel
from tokenfabric.channel_clocked import ClockedChannel
from tokenfabric.channel_hosts import HostsChannel
from tokenfabric.channel_shared import SharedMemoryChannel
from tokenfabric.errors import CommError, ConfigError
from tokenfabric.hosts import Call

if TYPE_CHECKING:
    from tokenfabric.channel_cuda import CopyEngineChannel
    from tokenfabric.world import World


@contextlib.contextmanager
def collective(world: "World", call: Call, device: torch.device) -> Iterator[Channel]:
    """Agree on `call` with all ranks, then let the body exchange messages. Collective.

    Whatever ends the body early breaks the world on every rank: the others wait for messages that
    will not come, and shall not wait until the deadline.

    Args:
        world: the ranks.
        call: what all of them must want.
        device: where the tensors lie: on the CPU, or on this rank's GPU.

    Raises:
        MismatchError: the ranks differ; raised before the body, and the world stays usable.
        PeerLostError, CommTimeoutError: see `tokenfabric.errors`.
        ConfigError: the world is closed, or has no tensors there, or its stream is being captured.
    """
    if world.hosts is not None and not world.is_closed:
        with contextlib.ExitStack() as stack:
            with world.comm_clock:
                stack.enter_context(world.hosts.collective(call))
            yield channel_of(world, device)
            channel_of(world, device).flush()
        return
    comm = world.comm
    if device.type == "cuda":
        channel = _cuda_channel(world, device)
        if torch.cuda.is_current_stream_capturing():
            raise ConfigError(
                "messages between GPUs cannot be captured in a CUDA graph in this version: call "
                "ring attention outside of the capture"
            )
        # What went wrong since the last call names the message; the agreement would not.
        channel.check()
    with world.comm_clock:
        comm.agree(call.operation, call.dtype, call.rows, call.row_elems, call.options)
    try:
        yield channel_of(world, device)
        channel_of(world, device).flush()
    except CommError:
        raise  # shared memory has told the others
    except BaseException:
        comm.abort()
        raise


def channel_of(world: "World", device: torch.device | None = None) -> Channel:
    """Return a channel of the world, opened by the first use; on CPUs on its clock. Not collective.

    Args:
        world: the ranks.
        device: where its tensors lie; default: where the world is.

    Raises:
        ConfigError: the world has no tensors there.
    """
    if (world.device if device is None else device).type == "cuda":
        return _cuda_channel(world, device)
    if world.channel is None:
        channel: Channel
        if world.hosts is None:
            channel = SharedMemoryChannel(world.comm)
        else:
            assert world.group is not None, "a world on several hosts has a process group"
            channel = HostsChannel(world.hosts, world.group)
        world.channel = ClockedChannel(channel, world.comm_clock)
    return world.channel


def _cuda_channel(world: "World", device: torch.device | None) -> "CopyEngineChannel":
    if world.cuda is None or (device is not None and device != world.device):
        raise ConfigError(f"tensors are on {device}, but this world is on {world.device}")
    return world.cuda.open_channel(world.host_comm)
