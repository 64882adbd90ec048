"""Data between the ranks of equal local rank, one on each host, over torch.distributed.

The process group is this world's own, made from the store of torch's and kept out of its registry:
no destroy_process_group of others takes it away, and dist.new_group would need ranks that are not
in this world. Every function starts an exchange and returns it; `Hosts.wait` waits for it.
"""

import contextlib
import datetime
import secrets
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import PrefixStore

from tokenfabric.topology import HostLayout


class Rail:
    """The ranks of one local rank. Ranks of the rail are hosts."""

    def __init__(
        self, group: dist.ProcessGroup, layout: HostLayout, timeout: datetime.timedelta
    ) -> None:
        """Connect. Collective over all ranks of the world's `group`."""
        nonce = torch.tensor([secrets.randbits(63)])
        dist.broadcast(nonce, group=group, group_src=0)
        name = f"tokenfabric/{nonce.item():x}/{layout.local_rank}"
        store = PrefixStore(name, dist.distributed_c10d._get_default_store())
        self._host_idx, self._num_hosts = layout.host_idx, layout.num_hosts
        self._group: Any = dist.ProcessGroupGloo(store, layout.host_idx, layout.num_hosts, timeout)

    def exchange(
        self, out: Tensor, own: Tensor, out_rows: Sequence[int], own_rows: Sequence[int]
    ) -> dist.Work:
        """Send the next `own_rows[h]` rows of `own` to host h, take in `out_rows[h]` from it.

        Args:
            out: [rows, ...] contiguous: what the other hosts send, in host order.
            own: [rows, ...] contiguous: what goes to the other hosts, in host order.
            out_rows, own_rows: rows by host; nothing for this one, which keeps its own.
        """
        assert out_rows[self._host_idx] == own_rows[self._host_idx] == 0
        # Of gloo's operations the one that copies nothing: twice as fast as its all-gather.
        work: dist.Work = self._group.alltoall_base(out, own, list(out_rows), list(own_rows))
        return work

    def broadcast(self, data: Tensor, host_idx: int) -> dist.Work:
        """Overwrite `data` on every host by that of `host_idx`."""
        work: dist.Work = self._group.broadcast(data, host_idx)
        return work

    def close(self, *, is_broken: bool) -> None:
        """Close the connections. Not collective. An exchange that still runs is cut off."""
        if is_broken:
            with contextlib.suppress(RuntimeError):
                self._group.abort()
        del self._group
