"""Plans of reductions over several hosts: who adds which rows, and what goes between hosts.

Pure: integers in, frozen dataclasses out. Ranks of equal local rank, one a host, form a rail; only
they send to each other. Sums are rounded once, so what travels before that is one of two:

"partials": the ranks' partial sums as they are, into memory that the host they reach has mapped.
    Whoever adds a row adds the world's ranks in order, as on one host. Chosen where the partial
    sums of a host take no more bytes than their fp32 sum would.
"sums": a host's ranks first add their partial sums into fp32 rows, one owner per row and host.

How often rows travel:

"gather": whoever adds a row gets all of it: one message.
"scatter": the rows are dealt to the ranks of the world, each adds its part, and the results, of the
    activation dtype, are gathered: two messages, fewer bytes.

A row-sharded residual is known to one rank of the world, which then finishes the row (bias,
residual, norm). A replicated one is known to every rank: rounded sums travel, and with "sums" each
host finishes every row, once; with "partials" each rank does, so that no result is copied.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from tokenweave.plan import STREAMING_MIN_BYTES, Output, ResidualLayout, split_rows

Exchange = Literal["gather", "scatter"]
Travels = Literal["partials", "sums"]

# What one more message between hosts costs, in bytes that could have been sent meanwhile: 100 us
# at 2.5 GB/s, as gloo takes on one machine.
MESSAGE_BYTES = 256 << 10
# Bytes that a rank reads or writes in the time in which it sends one.
MEMORY_BYTES_PER_SENT = 4
_SUM_BYTES = 4  # fp32
_TRAVELS = {"partials": "partial sums between hosts", "sums": "fp32 sums of hosts between them"}


@dataclass(frozen=True, kw_only=True, slots=True)
class HierarchicalPlan:
    """How one reduction over several hosts is done, the same on all ranks."""

    num_tokens: int
    hidden: int
    element_size: int
    num_hosts: int
    local_size: int
    travels: Travels
    exchange: Exchange
    output: Output
    """private: all rows on every rank; own_rows: only those that a rank adds."""
    residual_layout: ResidualLayout
    has_residual: bool
    reason: str

    @property
    def blocks(self) -> tuple[tuple[int, int], ...]:
        """Row ranges that the ranks of a host treat one after the other, each dealt by split_rows.

        gather: all rows at once. scatter: a block for each host, whose ranks will add its rows.
        """
        if self.exchange == "gather":
            return ((0, self.num_tokens),)
        shares = split_rows(self.num_tokens, self.num_hosts * self.local_size)
        firsts = range(0, len(shares), self.local_size)
        return tuple((shares[i][0], shares[i + self.local_size - 1][1]) for i in firsts)

    def rail_rows(self, local_rank: int) -> tuple[tuple[int, int], ...]:
        """Return the rows that rank `local_rank` of every host has, by block: with "sums", the
        sums of its host; with a scatter, the results once they are back.
        """
        rows = []
        for start, stop in self.blocks:
            first, last = split_rows(stop - start, self.local_size)[local_rank]
            rows.append((start + first, start + last))
        return tuple(rows)

    def added_rows(self, rank: int) -> tuple[int, int]:
        """Return the rows that `rank` of the world adds up.

        scatter: those of split_rows over the world. gather: all partial sums, or the sums of
        split_rows over its host.
        """
        if self.exchange == "gather" and self.travels == "partials":
            return (0, self.num_tokens)
        host_idx, local_rank = divmod(rank, self.local_size)
        return self.rail_rows(local_rank)[0 if self.exchange == "gather" else host_idx]

    @property
    def finishes_once(self) -> bool:
        """Whether a row is finished by one rank of the world, or by one of every host."""
        is_plain = not self.has_residual or self.residual_layout == "row_sharded"
        return self.exchange == "scatter" and is_plain

    @property
    def is_streaming(self) -> bool:
        """Whether results are written around the caches: see ReductionPlan. What other ranks read
        next is not.
        """
        num_bytes = self.num_tokens * self.hidden * self.element_size
        return self.travels == "partials" and num_bytes >= STREAMING_MIN_BYTES

    def bytes_sent(self, rank: int) -> int:
        """Return what `rank` sends to ranks of other hosts."""
        host_idx, local_rank = divmod(rank, self.local_size)
        others = self.num_hosts - 1
        if self.travels == "partials":
            own = [stop - start for start, stop in self.blocks]
            element_size = self.element_size
        else:
            own = [stop - start for start, stop in self.rail_rows(local_rank)]
            element_size = _SUM_BYTES
        if self.exchange == "gather":
            return others * own[0] * self.hidden * element_size
        added = (sum(own) - own[host_idx]) * element_size
        start, stop = self.added_rows(rank)
        returned = 0 if self.output == "own_rows" else others * (stop - start) * self.element_size
        return (added + returned) * self.hidden

    def explain(self) -> str:
        """Return one readable line."""
        most = max(self.bytes_sent(rank) for rank in range(self.num_hosts * self.local_size))
        return (
            f"{self.num_hosts} hosts x {self.local_size} ranks: {_TRAVELS[self.travels]}, "
            f"{self.exchange} ({self.reason}; a rank sends at most {most} bytes), {self.output} "
            f"output, {self.residual_layout} residual"
        )


@lru_cache(maxsize=4096)
def plan_hierarchical(
    *,
    num_tokens: int,
    hidden: int,
    element_size: int,
    num_hosts: int,
    local_size: int,
    output: Output = "private",
    residual_layout: ResidualLayout = "replicated",
    has_residual: bool = True,
) -> HierarchicalPlan:
    """Choose what goes between hosts. The same on every rank, since all arguments are.

    Args:
        num_tokens, hidden, element_size: the partial sum, [num_tokens, hidden] of so many bytes
            each.
        num_hosts, local_size: hosts, and ranks on each.
        output: "private", or "own_rows" for a reduce-scatter.
        residual_layout: row_sharded: a rank keeps the rows of split_rows over the world.
        has_residual: whether the sum is kept beside the result (not in a plain all-reduce).

    Raises:
        ValueError: the output is one that several hosts cannot have.
    """
    if output == "shared":
        raise ValueError(
            f"one output that all ranks have mapped needs one host, but the ranks lie on "
            f"{num_hosts}: pass a tensor or None"
        )

    def planned(exchange: Exchange, reason: str) -> HierarchicalPlan:
        return HierarchicalPlan(
            num_tokens=num_tokens,
            hidden=hidden,
            element_size=element_size,
            num_hosts=num_hosts,
            local_size=local_size,
            # A function of neither rows nor options: a row's bits are those of its order of sums.
            travels="partials" if local_size * element_size <= _SUM_BYTES else "sums",
            exchange=exchange,
            output=output,
            residual_layout=residual_layout,
            has_residual=has_residual,
            reason=reason,
        )

    if output == "own_rows" or residual_layout == "row_sharded":
        return planned("scatter", "every row has one owner in the world")
    saved = planned("gather", "").bytes_sent(0) - planned("scatter", "").bytes_sent(0)
    if saved > MESSAGE_BYTES:
        return planned("scatter", f"saves {saved} bytes")
    return planned("gather", f"a second message would save {max(saved, 0)} bytes")


def plan_forward_pass(
    *, num_tokens: int, hidden: int, element_size: int, num_hosts: int, local_size: int
) -> HierarchicalPlan:
    """Choose the residual's layout for reductions whose residual nobody else reads.

    Row-sharded, a row is finished once in the world and the residual stays where it is, but that
    takes two messages: worth it where the replicated layout takes two as well, or where every rank
    would add and finish so many more rows.
    """

    def planned(layout: ResidualLayout) -> HierarchicalPlan:
        return plan_hierarchical(
            num_tokens=num_tokens,
            hidden=hidden,
            element_size=element_size,
            num_hosts=num_hosts,
            local_size=local_size,
            residual_layout=layout,
        )

    replicated, sharded = planned("replicated"), planned("row_sharded")
    if replicated.exchange == "scatter":
        return sharded
    saved = replicated.bytes_sent(0) - sharded.bytes_sent(0)
    if replicated.travels == "partials":
        size = num_hosts * local_size
        # Reads one row a rank and the residual and writes two, where sharded it copies a result.
        touched = size + 1
        rows = num_tokens - num_tokens // size
        saved += touched * rows * hidden * element_size // MEMORY_BYTES_PER_SENT
    return sharded if saved > MESSAGE_BYTES else replicated
