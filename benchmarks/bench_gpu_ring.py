"""The merge of partial attention outputs on one GPU, against a copy of the same bytes.

    python -m benchmarks.bench_gpu_ring            # some seconds
    python -m benchmarks.bench_gpu_ring --quick    # fewer sizes, nothing written

A merge of P partials reads P outputs and writes one. The copy moves as many bytes, half of them
read and half written; plain torch is what a merge without a kernel of its own costs.
"""

import dataclasses
from collections.abc import Callable

import torch
from rich.console import Console

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
_HEADS, _HEAD_DIM = 64, 128
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
    report = [f"# Merge of attention outputs\n\n{facts.describe(RUNG)}", _LEGEND, table]
    if not options.quick:
        path = write_gpu_results(options.directory, "gpu_ring", facts, cells, report, rung=RUNG)
        console.print(f"wrote {path} and .md", soft_wrap=True)


_LEGEND = f"""\
bf16, {_HEADS} heads of {_HEAD_DIM}, partials that all have all rows. Bytes: what a merge reads and
writes, lse included; the copy moves the same number."""


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
