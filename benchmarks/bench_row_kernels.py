"""The row work of the fused reduction: instruction sets against each other, forms against plain.

    python -m benchmarks.bench_row_kernels            # everything, about two minutes
    python -m benchmarks.bench_row_kernels --quick    # a few cells, some seconds

Bodies: one rank alone, which leaves the row kernel and nothing to wait for. Forms (dtypes, norms,
numerics, quantised outputs): two ranks, since what a form costs is also what it moves.
"""

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from rich.console import Console

from tokenfabric import native
from tokenfabric.testing.bench import Budget, WorldRanks, measure
from tokenfabric.testing.bench_cell import Cell
from tokenfabric.testing.bench_report import (
    describe_environment,
    environment,
    markdown_table,
    write_results,
)
from tokenfabric.testing.spawn import run_ranks
from tokenfabric.testing.tolerance import assert_close, assert_same_bits
from tokenfabric.world import World
from tokenweave.ops import allreduce_rmsnorm
from tokenweave.quantized import QuantizedRows, allreduce_rmsnorm_quantized
from tokenweave.quantized_output import QuantizedOutput
from tokenweave.reference import allreduce_rmsnorm_reference

_REPOSITORY = Path(__file__).resolve().parents[1]
_EPS = 1e-6
# One sample takes at least so long, whatever the rows.
_SAMPLE_S = 2e-4
_QUANTIZED = {
    "fp8 static": QuantizedOutput(scaling="static", scale=0.02),
    "fp8 per token": QuantizedOutput(),
    "fp8 per group": QuantizedOutput(scaling="per_group"),
    "int8 per token": QuantizedOutput(format="int8"),
    "fp8 per token + normed": QuantizedOutput(keeps_normed=True),
}
Call = Callable[[], object]


def main() -> None:
    """Parse the command line, measure, show the tables and write the result files."""
    options = _parse()
    console = Console()
    facts = environment(_REPOSITORY)
    console.print(describe_environment(facts), soft_wrap=True)
    cells: list[Cell] = []
    report = [f"# Row kernels\n\n{describe_environment(facts)}\n\n{_LEGEND}"]
    for title, function, num_ranks in (
        ("Bodies, one rank", _rank_bodies, 1),
        ("Forms, two ranks, widest body", _rank_forms, 2),
    ):
        found = run_ranks(
            function, num_ranks, options.hidden, options.rows, options.seconds, timeout_s=1200
        )[0]
        cells += found
        table = markdown_table(found, ["dtype", "hidden", "rows"])
        report.append(f"## {title}\n\n{table}")
        console.print(report[-1], soft_wrap=True, highlight=False)
    if options.write:
        written = write_results(options.directory, "row_kernels", facts, cells, report)
        console.print(written, soft_wrap=True)


_LEGEND = """\
tokenweave.allreduce_rmsnorm with a residual; a ratio is first provider / this one, the median of
per-round ratios with its p25-p75. A/A is the first provider against itself: differences within it
mean nothing on this machine. Bodies: TOKENFABRIC_ISA. Forms: `plain` is bf16 RMSNorm, fused
numerics; `fp32 residual`, `layer_norm`, `drop_in`, `fp16` change one thing each; `fp8`, `int8` are
allreduce_rmsnorm_quantized."""


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--hidden", type=int, nargs="+", default=[4096, 8192])
    parser.add_argument("--rows", type=int, nargs="+", default=[64, 256, 1024])
    parser.add_argument("--seconds", type=float, default=3.0, help="timed rounds of one cell")
    parser.add_argument("--quick", action="store_true", help="hidden 4096, short, nothing written")
    parser.add_argument("--directory", type=Path, default=_REPOSITORY / "benchmarks" / "results")
    parser.add_argument("--no-write", dest="write", action="store_false")
    options = parser.parse_args()
    if options.quick:
        options.hidden, options.rows, options.seconds = [4096], [64, 1024], 0.5
        options.write = False
    return options


class _Problem:
    """Inputs of one call, different on every rank where they may be, and where results go."""

    def __init__(self, world: World, rows: int, hidden: int, dtype: torch.dtype):
        generator = torch.Generator().manual_seed(7)
        self.world = world
        self.partials = [
            torch.randn(rows, hidden, generator=generator).to(dtype) for _ in range(world.size)
        ]
        self.x = self.partials[world.rank]
        self.residual = torch.randn(rows, hidden, generator=generator).to(dtype)
        self.weight = torch.randn(hidden, generator=generator).to(dtype)
        self.out, self.residual_out = torch.empty_like(self.x), torch.empty_like(self.x)
        # Bytes a rank reads and writes, at a rate no machine here falls below.
        self.calls_per_sample = max(1, int(_SAMPLE_S * 4e9 / (5 * self.x.nbytes)))

    def plain(self) -> torch.Tensor:
        normed, _ = allreduce_rmsnorm(
            self.x, self.residual, self.weight, world=self.world, eps=_EPS, out=self.out,
            residual_out=self.residual_out,
        )  # fmt: skip
        return normed

    def check_plain(self, name: str, result: object) -> None:
        assert isinstance(result, torch.Tensor)
        baseline, _ = allreduce_rmsnorm_reference(
            self.partials, self.residual, self.weight, eps=_EPS, compute_dtype=torch.float32
        )
        exact, _ = allreduce_rmsnorm_reference(self.partials, self.residual, self.weight, eps=_EPS)
        assert_close(result, exact, baseline.to(result.dtype), ulps=2, what=name)


def _rank_bodies(world: World, hiddens: list[int], rows: list[int], seconds: float) -> list[Cell]:
    """Measure every body this CPU runs on one rank."""
    return list(_body_cells(world, hiddens, rows, seconds))


def _body_cells(
    world: World, hiddens: list[int], row_counts: list[int], seconds: float
) -> Iterator[Cell]:
    usable = native.weave.usable_row_kernels()
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        for hidden in hiddens:
            for rows in row_counts:
                problem = _Problem(world, rows, hidden, dtype)
                yield measure(
                    {name: _with_body(problem, name) for name in usable},
                    baseline=usable[0],
                    check=problem.check_plain,
                    labels=_labels("bodies", dtype, hidden, rows),
                    budget=Budget(seconds=seconds),
                    calls_per_sample=problem.calls_per_sample,
                )


def _with_body(problem: _Problem, name: str) -> Call:
    def call() -> torch.Tensor:
        # The choice is made when a call is prepared; a world of its own for each body would measure
        # other memory.
        world = problem.world
        if world.row_kernels.name != name:
            world.row_kernels = native.weave.choose_row_kernels(name)
            world.prepared.clear()
        return problem.plain()

    return call


def _rank_forms(world: World, hiddens: list[int], rows: list[int], seconds: float) -> list[Cell]:
    """Measure every form against the plain one."""
    return list(_form_cells(world, hiddens, rows, seconds))


def _form_cells(
    world: World, hiddens: list[int], row_counts: list[int], seconds: float
) -> Iterator[Cell]:
    ranks = WorldRanks(world)
    for hidden in hiddens:
        for rows in row_counts:
            problem = _Problem(world, rows, hidden, torch.bfloat16)
            expected = problem.plain().clone()

            def check(
                name: str, result: object, p: _Problem = problem, plain: torch.Tensor = expected
            ) -> None:
                if isinstance(result, QuantizedRows):
                    _check_codes(name, result, plain)
                elif name in ("plain", "fp32 residual"):
                    p.check_plain(name, result)

            yield measure(
                _forms(problem),
                baseline="plain",
                check=check,
                labels=_labels("forms", torch.bfloat16, hidden, rows),
                ranks=ranks,
                budget=Budget(seconds=seconds),
                calls_per_sample=problem.calls_per_sample,
            )


def _forms(p: _Problem) -> dict[str, Call]:
    # All forms read and write the same memory, so that none finds more of its own in the caches.
    world, wide = p.world, p.residual.float()
    wide_out = torch.empty_like(wide)
    codes = torch.empty(p.x.shape, dtype=torch.uint8)
    # The bits of bf16 numbers of this size are those of other, finite numbers in fp16.
    halves = [x.view(torch.float16) for x in (p.x, p.residual, p.weight, p.out, p.residual_out)]
    results = {"out": p.out, "residual_out": p.residual_out}

    def fp32_residual() -> object:
        return allreduce_rmsnorm(
            p.x, wide, p.weight, world=world, eps=_EPS, out=p.out, residual_out=wide_out
        )[0]

    def layer_norm() -> object:
        return allreduce_rmsnorm(
            p.x, p.residual, p.weight, world=world, norm="layer_norm", norm_bias=p.weight, **results
        )

    def drop_in() -> object:
        return allreduce_rmsnorm(
            p.x, p.residual, p.weight, world=world, numerics="drop_in", **results
        )

    def fp16() -> object:
        x, residual, weight, out, residual_out = halves
        return allreduce_rmsnorm(
            x, residual, weight, world=world, out=out, residual_out=residual_out
        )

    def quantized(output: QuantizedOutput) -> Call:
        made = allreduce_rmsnorm_quantized(
            p.x, p.residual, p.weight, output=output, world=world, eps=_EPS
        )
        out = made._replace(
            quantized=codes.view(made.quantized.dtype),
            residual=p.residual_out,
            normed=None if made.normed is None else p.out,
        )
        return lambda: allreduce_rmsnorm_quantized(
            p.x, p.residual, p.weight, output=output, world=world, eps=_EPS, out=out
        )

    return {
        "plain": p.plain,
        "fp16": fp16,
        "fp32 residual": fp32_residual,
        "layer_norm": layer_norm,
        "drop_in": drop_in,
        **{name: quantized(output) for name, output in _QUANTIZED.items()},
    }


def _check_codes(name: str, result: QuantizedRows, plain: torch.Tensor) -> None:
    if result.normed is not None:
        assert_same_bits(result.normed, plain, what=name)
    scales = result.scales
    if scales.dim() == 2:
        scales = scales.repeat_interleave(128, dim=-1)[:, : plain.shape[-1]]
    elif scales.dim() == 1:
        scales = scales.unsqueeze(-1)
    stands_for = result.quantized.float() * scales
    # Half a step of e4m3 is 2**-4 of a value; of int8, half a scale; saturated ones are bounded.
    limit = plain.float().abs() / 16 + scales
    bounded = plain.float().abs() <= 448 * scales
    assert ((stands_for - plain.float()).abs() <= limit)[bounded].all(), name


def _labels(operation: str, dtype: torch.dtype, hidden: int, rows: int) -> dict[str, object]:
    name = str(dtype).removeprefix("torch.")
    return {"operation": operation, "dtype": name, "hidden": hidden, "rows": rows}


if __name__ == "__main__":
    main()
