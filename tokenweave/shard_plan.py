"""Who holds what of a tensor-parallel model: attention heads, MLP columns, vocabulary rows (pure).

The number of ranks need not divide anything. Applying a plan to weights is in integrations/.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import NamedTuple

from tokenfabric.errors import ConfigError

_MAX_GRANULE = 64
"""Shares are multiples of 64 where balance allows: whole cache lines, and GEMM tiles, in bf16."""
_EXPERT_GRANULE = 8
"""Shares of an expert are multiples of 8 where every rank can have that: 16 bytes in bf16, which
torch's grouped GEMM demands of rows."""
_MAX_IMBALANCE = 1 / 16
"""How much larger than the mean a rank's share may become for the sake of its alignment."""


class Span(NamedTuple):
    """The half-open range [start, stop) of rows, columns or heads."""

    start: int
    stop: int

    @property
    def size(self) -> int:
        return self.stop - self.start

    def scaled(self, factor: int) -> "Span":
        """Return the span in units `factor` times smaller (heads -> rows of a weight)."""
        return Span(self.start * factor, self.stop * factor)


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelDimensions:
    """The sizes of a decoder that decide how it can be dealt to ranks."""

    num_query_heads: int
    num_kv_heads: int
    intermediate_size: int
    """Of an MLP; with experts, of the layers that have none."""
    vocab_size: int
    expert_intermediate_size: int | None = None
    """Of one expert; None without experts."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardPlan:
    """What every rank holds; element r of each tuple belongs to rank r."""

    num_ranks: int
    query_heads: tuple[Span, ...]
    """Every query head on exactly one rank, in order."""
    kv_heads: tuple[Span, ...]
    """The KV heads that a rank's query heads read. A KV head lies on several ranks only when there
    are more ranks than KV heads; the first of them is its owner."""
    mlp_columns: tuple[Span, ...]
    """Every column of the MLP's intermediate activation on exactly one rank, in order."""
    vocab_rows: tuple[Span, ...]
    """Every row of the embedding and of the LM head on exactly one rank, in order."""
    expert_columns: tuple[Span, ...] = ()
    """Every column of an expert's intermediate activation on exactly one rank, in order; the same
    for all experts, so that every rank works on every token. Empty without experts."""

    def of_rank(self, rank: int) -> str:
        """Return one line that says what `rank` holds."""
        held = {
            "query heads": self.query_heads,
            "KV heads": self.kv_heads,
            "MLP columns": self.mlp_columns,
            "expert columns": self.expert_columns,
            "vocabulary rows": self.vocab_rows,
        }
        parts = [f"{what} {_text(spans[rank])}" for what, spans in held.items() if spans]
        return f"rank {rank}: {', '.join(parts)}"

    def explain(self) -> str:
        """Return one line per rank, for people."""
        return "\n".join(self.of_rank(rank) for rank in range(self.num_ranks))


def plan_shards(dimensions: ModelDimensions, num_ranks: int) -> ShardPlan:
    """Deal a model to `num_ranks` ranks.

    Attention: whole KV groups (a KV head with the query heads that read it) while there are enough
    of them; beyond that, ranks are dealt to groups, the query heads of a group to its ranks, and
    the KV head is on each of these. 9 query heads in 3 groups give 6 and 3 query heads on 2 ranks
    (2 and 1 KV heads), and 2 1 2 1 2 1 query heads on 6 ranks (1 KV head each).

    Raises:
        ConfigError: a dimension is not positive or the heads form no whole groups, or there are
            more ranks than query heads, MLP or expert columns, or vocabulary rows.
    """
    query_heads, kv_heads = _plan_heads(
        dimensions.num_query_heads, dimensions.num_kv_heads, num_ranks
    )
    expert_size = dimensions.expert_intermediate_size
    return ShardPlan(
        num_ranks=num_ranks,
        query_heads=query_heads,
        kv_heads=kv_heads,
        mlp_columns=plan_even(dimensions.intermediate_size, num_ranks, what="MLP columns"),
        vocab_rows=plan_even(dimensions.vocab_size, num_ranks, what="vocabulary rows"),
        expert_columns=()
        if expert_size is None
        else plan_even(
            expert_size, num_ranks, what="expert columns", least_granule=_EXPERT_GRANULE
        ),
    )


def plan_even(
    num_items: int, num_ranks: int, *, what: str, least_granule: int = 1
) -> tuple[Span, ...]:
    """Deal `num_items` in order, near-equally, in multiples of a power of two where that is fair.

    Example: 1536 columns on 5 ranks are 320 320 320 320 256 (granules of 64).

    Args:
        num_items: how many there are.
        num_ranks: over how many ranks; every rank gets at least one item.
        what: what the items are, for the error.
        least_granule: a power of two; shares are multiples of it, fair or not, if it divides the
            items and leaves every rank some, or else of the largest smaller one that does.

    Raises:
        ConfigError: there are more ranks than items, or no rank.
    """
    _check_ranks(num_ranks, num_items, what)
    granule = _fair_granule(num_items, num_ranks, least_granule)
    spans = _spans(_deal(num_items // granule, num_ranks))
    return tuple(span.scaled(granule) for span in spans)


def _plan_heads(
    num_query_heads: int, num_kv_heads: int, num_ranks: int
) -> tuple[tuple[Span, ...], tuple[Span, ...]]:
    if num_kv_heads < 1 or num_query_heads < 1 or num_query_heads % num_kv_heads:
        raise ConfigError(
            f"{num_query_heads} query heads do not form whole groups over {num_kv_heads} KV heads"
        )
    _check_ranks(num_ranks, num_query_heads, "query heads")
    group_size = num_query_heads // num_kv_heads
    if num_ranks <= num_kv_heads:
        kv_heads = _spans(_deal(num_kv_heads, num_ranks))
        return tuple(span.scaled(group_size) for span in kv_heads), kv_heads
    ranks_of_group = _deal(num_ranks, num_kv_heads)
    query_counts = [n for num in ranks_of_group for n in _deal(group_size, num)]
    kv_of_rank = [Span(kv, kv + 1) for kv, num in enumerate(ranks_of_group) for _ in range(num)]
    return _spans(query_counts), tuple(kv_of_rank)


def _check_ranks(num_ranks: int, num_items: int, what: str) -> None:
    if num_ranks < 1:
        raise ConfigError(f"the number of ranks must be at least 1; got {num_ranks}")
    if num_ranks > num_items:
        raise ConfigError(
            f"{num_items} {what} cannot be dealt to {num_ranks} ranks: every rank needs one, "
            f"so use at most {num_items} ranks"
        )


def _fair_granule(num_items: int, num_ranks: int, least_granule: int) -> int:
    """Return the largest granule with which no share exceeds the mean by more than the limit, or
    the largest possible one of at most `least_granule` if that is more."""
    granule = _MAX_GRANULE
    while granule > 1:
        largest = -(-num_items // (granule * num_ranks)) * granule
        is_fair = largest * num_ranks <= num_items * (1 + _MAX_IMBALANCE)
        is_possible = num_items % granule == 0 and num_items >= granule * num_ranks
        if is_possible and (is_fair or granule <= least_granule):
            return granule
        granule //= 2
    return 1


def _deal(num_items: int, num_takers: int) -> list[int]:
    """Return near-equal shares; the first takers get one more where it does not come out even."""
    share, num_larger = divmod(num_items, num_takers)
    return [share + (taker < num_larger) for taker in range(num_takers)]


def _spans(sizes: Sequence[int]) -> tuple[Span, ...]:
    return tuple(Span(*bounds) for bounds in pairwise(accumulate(sizes, initial=0)))


def _text(span: Span) -> str:
    return f"{span.start}-{span.stop - 1} ({span.size})"
