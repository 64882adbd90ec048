"""What this process may run on: cores, threads, and which ranks share its host."""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from tokenfabric import env
from tokenfabric.errors import TopologyError

# Polls of one signal word before a wait sleeps. A poll and a pause take about 15 ns, so this is
# roughly 60 us: longer than two ranks' arrivals usually lie apart, shorter than a scheduler's
# slice.
SPIN_WITH_OWN_CORES = 4000
# With more ranks than cores the awaited rank may need the very core that spins.
SPIN_OVERSUBSCRIBED = 50


@dataclass(frozen=True, kw_only=True, slots=True)
class HostPlacement:
    """How the ranks of one host lie on its cores."""

    rank: int
    cores_of_rank: tuple[tuple[int, ...], ...]
    """Cores each rank may run on, by rank."""
    num_threads: int
    """Threads this rank computes with; the others are taken to use as many."""

    @property
    def num_ranks(self) -> int:
        """Ranks of the world on this host."""
        return len(self.cores_of_rank)

    @property
    def num_cores(self) -> int:
        """Cores the ranks share, together."""
        return len(set().union(*self.cores_of_rank))

    @property
    def is_pinned(self) -> bool:
        """Whether no core is open to two ranks."""
        return sum(len(cores) for cores in self.cores_of_rank) == self.num_cores

    @property
    def is_oversubscribed(self) -> bool:
        """Whether the ranks have more threads than there are cores to run them."""
        return self.num_ranks * self.num_threads > self.num_cores

    @property
    def spin_count(self) -> int:
        """Polls before a wait sleeps."""
        return SPIN_OVERSUBSCRIBED if self.is_oversubscribed else SPIN_WITH_OWN_CORES


def usable_cores() -> tuple[int, ...]:
    """Return the cores this process is allowed to run on, ascending."""
    return tuple(sorted(os.sched_getaffinity(0)))


def default_threads(cores_of_rank: tuple[tuple[int, ...], ...], wanted: int) -> int:
    """Return the threads of a rank that was not told: `wanted`, at most its share of the cores."""
    share = len(set().union(*cores_of_rank)) // len(cores_of_rank)
    return max(1, min(wanted, share))


def host_fingerprint() -> bytes:
    """Return 16 bytes equal for processes that can share memory, different otherwise.

    The kernel's boot id tells hosts (and virtual machines) apart, the ids of the user and of the
    mount namespace tell containers apart, whose /tmp, through which ranks meet, differs.
    TOKENFABRIC_HOST_ID takes the place of the mount namespace.
    """
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    place = env.host_id() or os.readlink("/proc/self/ns/mnt")
    return hashlib.sha256(f"{boot}/{place}/{os.geteuid()}".encode()).digest()[:16]


@dataclass(frozen=True, kw_only=True, slots=True)
class HostLayout:
    """How the ranks of a world lie on its hosts: `local_size` on each, in blocks of rank order.

    Example: 2 hosts of 2 ranks are ranks (0, 1) and (2, 3); the rails, which connect the ranks of
    equal local rank, are (0, 2) and (1, 3).
    """

    rank: int
    num_hosts: int
    local_size: int

    @property
    def size(self) -> int:
        """Ranks of the world."""
        return self.num_hosts * self.local_size

    @property
    def host_idx(self) -> int:
        """This rank's host."""
        return self.rank // self.local_size

    @property
    def local_rank(self) -> int:
        """This rank's place on its host."""
        return self.rank % self.local_size

    @property
    def host_ranks(self) -> range:
        """The ranks that share memory with this one, itself included."""
        first = self.host_idx * self.local_size
        return range(first, first + self.local_size)

    @property
    def rail_ranks(self) -> range:
        """The ranks of equal local rank, by host, this one included."""
        return range(self.local_rank, self.size, self.local_size)


def plan_host_layout(rank: int, hosts: Sequence[bytes]) -> HostLayout:
    """Return how a world lies on its hosts.

    Args:
        rank: this rank.
        hosts: `host_fingerprint` of every rank.

    Raises:
        TopologyError: a host's ranks are not consecutive, or hosts have different numbers of them.
    """
    runs = [(host, len(list(same))) for host, same in groupby(hosts)]
    lengths = [length for _, length in runs]
    found = f"ranks by host, in rank order: {lengths}"
    if len({host for host, _ in runs}) < len(runs):
        raise TopologyError(
            f"the ranks of a host are not consecutive ({found}; a host appears twice): number them "
            "host by host, as torchrun does"
        )
    if len(set(lengths)) > 1:
        raise TopologyError(
            f"hosts have different numbers of ranks ({found}): start the same number on every host "
            "(torchrun --nproc-per-node). Ranks that should share memory but run in containers or "
            "as other users count as other hosts; see TOKENFABRIC_HOST_ID"
        )
    return HostLayout(rank=rank, num_hosts=len(runs), local_size=lengths[0])
