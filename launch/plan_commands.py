"""The commands `plan` and `trace` of cli.py. Imports neither torch nor transformers."""

from pathlib import Path
from typing import Annotated

import typer

Model = Annotated[
    str,
    typer.Option(
        help="A directory with config.json, such a file, or a published model's name, such as "
        "Llama-3.3-70B-Instruct."
    ),
]
Gpu = Annotated[
    str, typer.Option(help="a10, a100, b200, cpu, h100, h200 or l40s; none is needed here.")
]
Tp = Annotated[int, typer.Option("--tp", min=1, help="Ranks that share the model.")]
Tokens = Annotated[int, typer.Option(min=1, help="Tokens of the forward pass, of all sequences.")]
BatchSize = Annotated[
    int, typer.Option("--batch", min=1, help="Sequences that share the tokens equally.")
]
Past = Annotated[int, typer.Option(min=0, help="Tokens of each sequence that are cached already.")]
Alignment = Annotated[
    int, typer.Option(min=1, help="Positions that a split inside a sequence is a multiple of.")
]

DeviceTable = Annotated[
    Path | None,
    typer.Option(
        help="A file of tables measured by `tokenfabric bench --tune`; the entry of --gpu and "
        "--tp is taken.",
        show_default=False,
    ),
]


def add_plan_commands(app: typer.Typer) -> None:
    """Give an application the commands."""
    app.command()(plan)
    app.command()(trace)


def plan(
    model: Model,
    tokens: Tokens,
    gpu: Gpu = "h100",
    tp: Tp = 8,
    batch: BatchSize = 1,
    past: Past = 0,
    alignment: Alignment = 1,
    device_table: DeviceTable = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="Say why, and where each number comes from.")
    ] = False,
) -> None:
    """Show how a forward pass would be split on a device, with simulated times. Starts no ranks."""
    from launch.console import ConsoleReporter
    from launch.recipes.plan import PlanRequest, run_plan

    sizes = {"tokens": tokens, "batch": batch, "past": past, "alignment": alignment}
    request = PlanRequest(model=model, gpu=gpu, ranks=tp, device_table=device_table, **sizes)
    run_plan(ConsoleReporter(), request, explain=explain)


def trace(
    model: Model,
    tokens: Tokens,
    output: Annotated[Path, typer.Option(help="The file to write.")] = Path("trace.json"),
    gpu: Gpu = "h100",
    tp: Tp = 8,
    batch: BatchSize = 1,
    past: Past = 0,
    alignment: Alignment = 1,
    device_table: DeviceTable = None,
) -> None:
    """Write a simulated forward pass as a trace for Perfetto, with its overlap ratio."""
    from launch.console import ConsoleReporter
    from launch.recipes.plan import PlanRequest, run_trace

    sizes = {"tokens": tokens, "batch": batch, "past": past, "alignment": alignment}
    request = PlanRequest(model=model, gpu=gpu, ranks=tp, device_table=device_table, **sizes)
    run_trace(ConsoleReporter(), request, output)
