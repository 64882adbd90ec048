"""Joining the world that a launcher describes."""

import datetime

import torch
import torch.distributed as dist

from tokenfabric import env
from tokenfabric.cuda.device import choose_device
from tokenfabric.errors import CommTimeoutError, TopologyError
from tokenfabric.world import World, check_options


def init(device: str = "auto", timeout_s: float = 30.0, num_threads: int | None = None) -> World:
    """Join the world that torchrun's six variables describe; a world of one when none is set.

    Collective. Sets up torch.distributed (gloo) if nobody has, and takes it down again in
    `World.close`.

    Args:
        device: "cpu"; "cuda" for the GPU of this rank's local rank, or the only one it sees;
            "cuda:1" for that one. "auto" is "cpu": no GPU is taken unasked. A GPU becomes the
            process's current device.
        timeout_s: deadline of every wait on another rank, seconds.
        num_threads: threads of this rank's kernels; default: torch's count, at most the rank's
            share of the cores.

    Raises:
        ConfigError: an argument or variable is out of range.
        TopologyError: the device is not available, the GPUs cannot reach each other, the ranks lie
            unevenly on their hosts, or MASTER_ADDR and MASTER_PORT are taken or out of reach.
        PeerLostError, CommTimeoutError: a rank went away or did not come.
    """
    check_options(timeout_s, num_threads)
    rank_info = env.rank_info_from_env()
    where = torch.device("cpu")
    if device not in ("auto", "cpu"):
        where = choose_device(device, 0 if rank_info is None else rank_info.local_rank)
    if dist.is_initialized():
        return World.from_group(
            dist.group.WORLD, timeout_s=timeout_s, num_threads=num_threads, device=where
        )
    if rank_info is None:
        return World(None, timeout_s=timeout_s, num_threads=num_threads, device=where)
    _meet(rank_info, timeout_s)
    try:
        return World(
            dist.group.WORLD,
            timeout_s=timeout_s,
            num_threads=num_threads,
            owns_group=True,
            device=where,
        )
    except BaseException:
        dist.destroy_process_group()
        raise


def _meet(info: env.RankInfo, timeout_s: float) -> None:
    place = f"{info.master_addr}:{info.master_port}"
    try:
        dist.init_process_group("gloo", timeout=datetime.timedelta(seconds=timeout_s))
    except dist.DistNetworkError as error:
        does = "opens" if info.rank == 0 else "calls"
        reason = str(error).splitlines()[0].rstrip(".")
        raise TopologyError(
            f"rank {info.rank} {does} the ranks' meeting point at {place}, and cannot: "
            f"{reason}; choose a MASTER_PORT that is free on rank 0's host, and "
            "a MASTER_ADDR of it that all ranks reach"
        ) from error
    except dist.DistStoreError as error:
        raise CommTimeoutError(
            f"not all of {info.world_size} ranks came to {place} within {timeout_s:g} s; this is "
            f"rank {info.rank}",
            rank=info.rank,
            operation="rendezvous",
        ) from error
