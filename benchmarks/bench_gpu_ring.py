"""Ring attention on one GPU: the merge of partial outputs, and one rank's share of eight.

    python -m benchmarks.bench_gpu_ring            # some seconds
    python -m benchmarks.bench_gpu_ring --quick    # fewer sizes, nothing written

A merge of P partials reads P outputs and writes one. The copy moves as many bytes, half of them
read and half written; plain torch is what a merge without a kernel of its own costs.

The share of a rank is its whole plan of causal attention, every message copied within the GPU
(benchmarks/gpu_loopback.py), against one flash kernel with as many pairs of a query and a key.
"""

import dataclasses
from collections.abc import Callable

import torch
from rich.console import Console

from benchmarks.gpu_loopback import Share, prepare
from benchmarks.gpu_options import REPOSITORY, gpu, parse
from tokenfabric.testing.bench import Budget
from tokenfabric.testing.bench_cell import Cell
from tokenfabric.testing.bench_report import markdown_table
from tokenfabric.testing.gpu_report import (
    Captured,
    gpu_facts,
    measure_captured,
    write_gpu_results,
)
from tokenring.merge import merge_partials, merge_with_torch
from tokenring.partial import Partial

RUNG = "measured on one GPU"
_HEADS, _KV_HEADS, _HEAD_DIM = 64, 8, 128
_RANKS = 8
_BASELINE = "copy"
# Calls of one graph, each on memory of its own, so that nothing is found in the L2 cache.
_NUM_CALLS = 4
Call = Callable[[], object]


def main() -> None:
    """Measure, show the table and write the result files."""
    options = parse((__doc__ or "").splitlines()[0], seconds=1.0)
    console, device = Console(), gpu()
    facts = gpu_facts(REPOSITORY, device, options.commit)
    console.print(facts.describe(RUNG), soft_wrap=True)
    sizes = ((8, 4096),) if options.quick else ((2, 4096), (4, 4096), (8, 4096), (8, 16384))
    cells = [_measure(count, tokens, device, options.seconds) for count, tokens in sizes]
    table = markdown_table(cells, ["partials", "tokens", "TB/s merged", "TB/s copied"])
    console.print(table, soft_wrap=True, highlight=False)
    report = [f"# Ring attention on one GPU\n\n{facts.describe(RUNG)}", _LEGEND, table]
    lengths = (8192,) if options.quick else (8192, 32768, 65536)
    fitting = [tokens for tokens in lengths if _share_gib(tokens) < facts.memory_gib]
    if fitting != list(lengths):
        console.print(f"not enough memory for more than {fitting[-1]} tokens a rank")
    shares = [_measure_share(tokens, device, 2 * options.seconds) for tokens in fitting]
    table = markdown_table(shares, ["tokens a rank", "strategy", "MB in", "MB out", "TFLOP/s"])
    console.print(table, soft_wrap=True, highlight=False)
    report += [_SHARE_LEGEND, table]
    cells += shares
    if not options.quick:
        path = write_gpu_results(options.directory, "gpu_ring", facts, cells, report, rung=RUNG)
        console.print(f"wrote {path} and .md", soft_wrap=True)


_LEGEND = f"""\
bf16, {_HEADS} heads of {_HEAD_DIM}, partials that all have all rows. Bytes: what a merge reads and
writes, lse included; the copy moves the same number."""

_SHARE_LEGEND = f"""\
One rank of {_RANKS}, causal, zigzag, bf16, {_HEADS}:{_KV_HEADS} heads of {_HEAD_DIM}, forward.
Every message is copied within the GPU, which takes twice the memory bandwidth that it takes between
GPUs; nobody is waited for. One kernel: an unmasked block of as many pairs. A ratio of 0.95 is the
goal from 32768 tokens on."""


def _share_gib(tokens: int) -> float:
    """Return what is needed at most: q, outputs of all kernels, messages, twice for the graph."""
    return 20 * tokens * _HEADS * _HEAD_DIM * 2 / 2**30


def _measure_share(tokens: int, device: torch.device, seconds: float) -> Cell:
    share = Share(
        ranks=_RANKS, tokens=tokens, heads_q=_HEADS, heads_kv=_KV_HEADS, head_dim=_HEAD_DIM
    )
    loopback = prepare(share, device)
    part = loopback.plan.of_rank(0)
    cell = measure_captured(
        {"one kernel": Captured([loopback.kernel], device),
         "share": Captured([loopback.walk], device)},
        baseline="one kernel", labels={"tokens a rank": tokens}, device=device,
        budget=Budget(seconds=seconds, min_rounds=3, warmup_calls=1),
    )  # fmt: skip
    received = sum(arrival.transfer.num_bytes for arrival in part.arrivals)
    labels = {
        **cell.labels,
        "strategy": loopback.plan.movement.name,
        "MB in": f"{received / 1e6:.0f}",
        "MB out": f"{part.bytes_sent / 1e6:.0f}",
        "TFLOP/s": f"{part.flops / cell.seconds['share'].median / 1e12:.0f}",
    }
    return dataclasses.replace(cell, labels=labels)


def _measure(count: int, tokens: int, device: torch.device, seconds: float) -> Cell:
    shape = (1, tokens, _HEADS)
    num_bytes = (count + 1) * tokens * _HEADS * (_HEAD_DIM * 2 + 4)
    merges: list[Call] = []
    plain: list[Call] = []
    copies: list[Call] = []
    for _ in range(_NUM_CALLS):
        partials = [
            Partial(
                torch.randn(*shape, _HEAD_DIM, device=device).bfloat16(),
                torch.randn(shape, device=device),
            )
            for _ in range(count)
        ]
        out = torch.empty(*shape, _HEAD_DIM, dtype=torch.bfloat16, device=device)
        lse = torch.empty(shape, device=device)
        moved = torch.empty(2, num_bytes // 2, dtype=torch.uint8, device=device)
        _check(partials, out, lse)
        merges.append(lambda p=partials, o=out, s=lse: merge_partials(p, o, s))  # type: ignore[misc]
        plain.append(lambda p=partials, o=out, s=lse: merge_with_torch(p, o, s))  # type: ignore[misc]
        copies.append(lambda m=moved: m[0].copy_(m[1]))  # type: ignore[misc]
    cell = measure_captured(
        {_BASELINE: Captured(copies, device), "merge": Captured(merges, device),
         "plain torch": Captured(plain, device)},
        baseline=_BASELINE, labels={"partials": count, "tokens": tokens}, device=device,
        budget=Budget(seconds=seconds),
    )  # fmt: skip
    rates = {name: f"{num_bytes / it.median / 1e12:.2f}" for name, it in cell.seconds.items()}
    labels = {**cell.labels, "TB/s merged": rates["merge"], "TB/s copied": rates[_BASELINE]}
    return dataclasses.replace(cell, labels=labels)


def _check(partials: list[Partial], out: torch.Tensor, lse: torch.Tensor) -> None:
    """Refuse to time a merge that is wrong."""
    merge_partials(partials, out, lse)
    expected, expected_lse = torch.empty_like(out), torch.empty_like(lse)
    merge_with_torch(partials, expected, expected_lse)
    torch.testing.assert_close(out, expected, rtol=2**-7, atol=2**-7)
    torch.testing.assert_close(lse, expected_lse)


if __name__ == "__main__":
    main()
