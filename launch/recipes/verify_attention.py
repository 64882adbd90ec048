"""`tokenfabric verify --attention`: is attention over sharded tokens as exact as on one device?

Rank 0 computes the same attention alone, in fp64 as the reference and with the ranks' own kernel in
the ranks' own dtype as the baseline. Contract: an error is at most twice the baseline's, plus one
unit in the last place (tolerance.py).
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from launch.memory import free_bytes
from launch.recipes.precision import choose_dtype, dtype_name
from launch.recipes.threads import all_cores
from launch.report import Reporter, Table
from tokenfabric import ConfigError, World
from tokenfabric.testing.tolerance import ErrorReport, measure_error
from tokenring import reference
from tokenring.attention import ring_attention
from tokenring.capability import LocalNeeds, band_kind
from tokenring.connection import channel_of
from tokenring.exchange import gather_rows
from tokenring.local import choose_local
from tokenring.local_protocol import accumulation_dtype, row_delta
from tokenring.merge import merge_partials
from tokenring.partition import partition_tokens
from tokenring.sharding import shard, unshard

_NAMES = ("out", "lse", "dq", "dk", "dv")
# The reference holds the scores of one group of heads, and what autograd keeps of them.
_SCORE_COPIES = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Configuration:
    """What a user asks to have checked."""

    tokens: int
    heads: int
    kv_heads: int
    head_dim: int
    dtype: torch.dtype
    partition: Any
    strategy: str
    causal: bool
    window: int | None
    softcap: float | None

    def __post_init__(self) -> None:
        if self.heads % self.kv_heads:
            raise ConfigError(
                f"--heads {self.heads} must be a multiple of --kv-heads {self.kv_heads}"
            )
        if self.window is not None and not self.causal:
            raise ConfigError("--window counts the keys before a query: leave --no-causal out")
        group = self.heads // self.kv_heads
        needed, free = _SCORE_COPIES * 8 * group * self.tokens**2, free_bytes()
        if needed > free:
            raise ConfigError(
                f"the fp64 reference of {self.tokens} tokens needs {needed / 1e9:.1f} GB, "
                f"{free / 1e9:.1f} GB are free: take fewer --tokens"
            )

    @property
    def band(self) -> tuple[int | None, int | None]:
        """The mask of the whole, as a kernel takes it."""
        return (None if self.window is None else 1 - self.window, 0 if self.causal else None)


def run(
    world: World,
    reporter: Reporter,
    *,
    tokens: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    dtype: str,
    partition: str,
    strategy: str,
    causal: bool,
    window: int | None,
    softcap: float | None,
    seed: int = 0,
) -> bool:
    """Compare out, lse and all gradients, show the table, return whether all passed. Collective.

    Args:
        world: the ranks that share the tokens.
        reporter: gets the plan's choice and the table.
        tokens: length of the sequence.
        heads: query heads.
        kv_heads: heads of k and v.
        head_dim: width of a head.
        dtype: "auto", "bf16" or "fp32".
        partition: contiguous, zigzag or striped.
        strategy: auto, or a strategy's name.
        causal: a query sees no later token.
        window: with causal, how many keys a query sees.
        softcap: of the scores.
        seed: of the random tensors.

    Raises:
        ConfigError: an argument is out of range or the reference does not fit into memory.
    """
    asked = Configuration(
        tokens=tokens,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        dtype=choose_dtype(dtype),
        partition=partition,
        strategy=strategy,
        causal=causal,
        window=window,
        softcap=softcap,
    )
    whole = _tensors(asked, seed)
    sharded, sent = _on_ranks(world, asked, whole)
    rows: list[tuple[str, ...]] = []
    passed = True
    if world.rank == 0:
        with all_cores(world):
            exact, same = _reference(asked, whole), _one_device(asked, whole)
        for name in _NAMES:
            report, fits = _compare(name, sharded[name], exact[name], same[name])
            rows.append(_row(name, report, fits))
            passed = passed and fits
    reporter.table(_table(world, asked, rows, sent))
    verdict = gather_rows(world, torch.tensor([[int(passed)]]), (1,) * world.size, terms="verdict")
    return bool(verdict[0])


def _tensors(asked: Configuration, seed: int) -> dict[str, Tensor]:
    """Return q, k, v and dout, [1, tokens, heads, head_dim], the same on every rank."""
    generator = torch.Generator().manual_seed(seed)
    heads = {"q": asked.heads, "k": asked.kv_heads, "v": asked.kv_heads, "dout": asked.heads}
    return {
        name: torch.randn(1, asked.tokens, count, asked.head_dim, generator=generator).to(
            asked.dtype
        )
        for name, count in heads.items()
    }


def _on_ranks(
    world: World, asked: Configuration, whole: dict[str, Tensor]
) -> tuple[dict[str, Tensor], list[int]]:
    """Return what the ranks compute, whole, and the bytes that each of them sent."""
    layout = partition_tokens(asked.tokens, world.size, asked.partition)
    mine = {name: shard(x, world=world, layout=layout) for name, x in whole.items()}
    q, k, v = (mine[name].requires_grad_() for name in ("q", "k", "v"))
    out, lse = ring_attention(
        q, k, v,
        world=world, causal=asked.causal, window=asked.window, softcap=asked.softcap,
        layout=layout, strategy=asked.strategy, return_lse=True,
    )  # fmt: skip
    torch.autograd.backward([out], [mine["dout"]])
    bytes_sent = sum(channel_of(world).bytes_sent.values())
    found = {"out": out.detach(), "lse": lse.detach(), "dq": q.grad, "dk": k.grad, "dv": v.grad}
    results = {}
    for name, x in found.items():
        assert x is not None, f"{name} was asked for"
        results[name] = unshard(x, world=world, layout=layout)
    sent = gather_rows(world, torch.tensor([[bytes_sent]]), (1,) * world.size, terms="bytes")
    return results, [int(count) for count in sent]


def _reference(asked: Configuration, whole: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the definition's results in fp64, a group of heads at a time."""
    positions = torch.arange(asked.tokens)
    left = None if asked.window is None else asked.window - 1
    mask = reference.visible(positions, positions, is_causal=asked.causal, window=(left, None))
    group = asked.heads // asked.kv_heads
    parts: dict[str, list[Tensor]] = {name: [] for name in _NAMES}
    for head in range(asked.kv_heads):
        of_q = slice(head * group, (head + 1) * group)
        q, dout = (whole[name][:, :, of_q].double() for name in ("q", "dout"))
        k, v = (whole[name][:, :, head : head + 1].double() for name in ("k", "v"))
        for x in (q, k, v):
            x.requires_grad_()
        out, lse = reference.attention(q, k, v, mask=mask, softcap=asked.softcap)
        gradients = torch.autograd.grad([out], [q, k, v], [dout])
        for name, x in zip(_NAMES, (out, lse, *gradients), strict=True):
            parts[name].append(x.detach())
    return {name: torch.cat(found, dim=2) for name, found in parts.items()}


def _one_device(asked: Configuration, whole: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return what the kernel of the ranks computes of all tokens at once."""
    q, k, v, dout = (whole[name] for name in ("q", "k", "v", "dout"))
    local, _ = choose_local(
        LocalNeeds(
            device="cpu",
            dtype=str(q.dtype).removeprefix("torch."),
            head_dim=asked.head_dim,
            head_dim_v=asked.head_dim,
            bands=frozenset({band_kind(*asked.band)}),
            has_softcap=asked.softcap is not None,
            needs_backward=True,
        )
    )
    how: dict[str, Any] = {
        "scale": asked.head_dim**-0.5, "band": asked.band, "softcap": asked.softcap
    }  # fmt: skip
    wide = accumulation_dtype(q.dtype)
    out, lse = torch.empty_like(q), torch.empty(q.shape[:3], dtype=wide)
    merge_partials(local.forward(q, k, v, **how), out, lse)
    gradients = [torch.zeros(x.shape, dtype=wide) for x in (q, k, v)]
    dq, dk, dv = gradients
    local.backward(dout, q, k, v, lse, row_delta(dout, out), dq=dq, dk=dk, dv=dv, **how)
    return dict(zip(_NAMES, (out, lse, *(x.to(q.dtype) for x in gradients)), strict=True))


def _compare(
    name: str, actual: Tensor, exact: Tensor, same: Tensor
) -> tuple[ErrorReport | None, bool]:
    """Return the error and whether it is within contract; None where NaN or infinities differ."""
    if not torch.equal(actual.isfinite(), exact.isfinite()):
        return None, False
    report = measure_error(actual, exact, same, what=name)
    return report, report.worst_ratio <= 1.0


def _row(name: str, report: ErrorReport | None, fits: bool) -> tuple[str, ...]:
    verdict = "pass" if fits else "FAIL"
    if report is None:
        return (name, "not finite", "", "", verdict)
    return (
        name,
        f"{report.max_error:.2g}",
        f"{report.max_baseline_error:.2g}",
        f"{report.worst_ratio:.0%}",
        verdict,
    )


def _table(
    world: World, asked: Configuration, rows: list[tuple[str, ...]], sent: list[int]
) -> Table:
    mask = "causal" if asked.causal else "no mask"
    mask += f", window {asked.window}" if asked.window is not None else ""
    mask += f", softcap {asked.softcap:g}" if asked.softcap is not None else ""
    return Table(
        title=(
            f"attention of {asked.tokens} tokens on {world.size} ranks: {asked.heads} heads, "
            f"{asked.kv_heads} KV heads, head_dim {asked.head_dim}, "
            f"{dtype_name(asked.dtype)}, {mask}"
        ),
        columns=("tensor", "error", "one device's", "of allowed", "verdict"),
        rows=tuple(rows),
        notes=(
            f"{asked.partition} partition, strategy {asked.strategy}; bytes sent by each rank, "
            f"forward and backward: {', '.join(f'{count / 1e6:.2f} MB' for count in sent)}.",
            "Errors are the largest, against fp64. Allowed: twice the error of one device with "
            "the same kernel and dtype + 1 ulp.",
        ),
    )
