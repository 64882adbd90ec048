"""The `tokenfabric` command. Importing it imports neither torch nor transformers.

Exit codes: 0 done, 1 failed (or a check found a difference), 2 the request cannot be met.
"""

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from launch.bench_command import bench
from launch.command import run_recipe
from launch.generate_command import generate
from launch.options import (
    Dtype,
    DtypeOption,
    MaxNewTokens,
    Model,
    Partition,
    Pin,
    Prompt,
    Ranks,
    Threads,
    TimeoutS,
)
from launch.plan_commands import add_plan_commands
from launch.ring_options import (
    AttentionCheck,
    AttentionDtype,
    Causal,
    HeadDim,
    Heads,
    KvHeads,
    RingCheck,
    Softcap,
    Strategy,
    TokenPartition,
    Tokens,
    Window,
    refuse_unused,
)
from launch.train_command import train

if TYPE_CHECKING:
    from launch.failure import Failure

app = typer.Typer(
    name="tokenfabric",
    help="Tensor-parallel LLM inference with fused collectives, on the CPUs of this machine.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.command()
def demo(
    model: Model = "smollm2",
    ranks: Ranks = None,
    prompt: Prompt = "What is a neural network? Answer in two sentences.",
    max_new_tokens: MaxNewTokens = 64,
    dtype: DtypeOption = Dtype.AUTO,
    seconds: Annotated[float, typer.Option(min=1.0, help="About how long to measure.")] = 20.0,
    threads: Threads = None,
    pin: Pin = None,
    timeout_s: TimeoutS = 120.0,
) -> None:
    """Answer a prompt with a model shared by 2 processes, then measure what sharing costs."""
    passed = run_recipe(
        "launch.recipes.demo:run",
        model=model,
        ranks=ranks,
        threads=threads,
        pin=pin,
        timeout_s=timeout_s,
        prompt=prompt,
        max_new_tokens=max_new_tokens,
        dtype=dtype.value,
        seconds=seconds,
    )
    if not passed:
        raise typer.Exit(1)


app.command()(generate)


@app.command()
def verify(
    context: typer.Context,
    model: Model = "smollm2",
    ranks: Ranks = None,
    max_new_tokens: MaxNewTokens = 32,
    attention: AttentionCheck = False,
    ring: RingCheck = False,
    tokens: Tokens = None,
    partition: TokenPartition = Partition.ZIGZAG,
    heads: Heads = 8,
    kv_heads: KvHeads = 2,
    head_dim: HeadDim = 64,
    dtype: AttentionDtype = Dtype.AUTO,
    causal: Causal = True,
    window: Window = None,
    softcap: Softcap = None,
    strategy: Strategy = "auto",
    threads: Threads = None,
    pin: Pin = None,
    timeout_s: TimeoutS = 600.0,
) -> None:
    """Compare the shared model with the same model in one process, in fp32 and in bf16."""
    refuse_unused(context, is_attention=attention, is_ring=ring)
    if attention:
        passed = run_recipe(
            "launch.recipes.verify_attention:run",
            model=None,
            ranks=ranks,
            threads=threads,
            pin=pin,
            timeout_s=timeout_s,
            tokens=1024 if tokens is None else tokens,
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            dtype=dtype.value,
            partition=partition.value,
            strategy=strategy,
            causal=causal,
            window=window,
            softcap=softcap,
        )
    elif ring:
        passed = run_recipe(
            "launch.recipes.verify_ring:run",
            model=model,
            ranks=ranks,
            default_ranks=4,
            threads=threads,
            pin=pin,
            timeout_s=timeout_s,
            tokens=tokens,
            partition=partition.value,
        )
    else:
        passed = run_recipe(
            "launch.recipes.verify:run",
            model=model,
            ranks=ranks,
            threads=threads,
            pin=pin,
            timeout_s=timeout_s,
            max_new_tokens=max_new_tokens,
        )
    if not passed:
        raise typer.Exit(1)


app.command()(train)
app.command()(bench)


@app.command()
def doctor(
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object on stdout instead of tables.")
    ] = False,
) -> None:
    """Say what this machine has, what will run on it, and what the rest needs. Starts no ranks."""
    from launch.console import ConsoleReporter
    from launch.recipes.doctor import run

    if not run(ConsoleReporter(), as_json=as_json):
        raise typer.Exit(1)


add_plan_commands(app)


def main(command: Callable[[], object] = app) -> None:
    """Run the command line, or another command that fails like it, and exit."""
    try:
        command()
    except Exception as error:
        from launch.failure import JobFailedError, describe

        failure = error.failure if isinstance(error, JobFailedError) else describe(error, rank=None)
        sys.exit(_tell(failure))


def _tell(failure: "Failure") -> int:
    """Write what a user should know of a failure to stderr and return the exit code."""
    from launch.failure import FailureKind

    if failure.kind is FailureKind.DEFECT and failure.details:
        typer.echo(failure.details.rstrip("\n"), err=True)
    typer.echo(f"tokenfabric: {failure.line}", err=True)
    return failure.exit_code
