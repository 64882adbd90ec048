"""The `tokenfabric` command. Importing it imports neither torch nor transformers.

Exit codes: 0 done, 1 failed (or a check found a difference), 2 the request cannot be met.
"""

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from launch.bench_command import bench
from launch.dispatch import Address, Launcher, LauncherOption, Nodes, check_launcher, run_with
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
    passed = _run(
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


@app.command()
def generate(
    model: Model,
    prompt: Prompt,
    ranks: Ranks = None,
    max_new_tokens: MaxNewTokens = 128,
    temperature: Annotated[
        float, typer.Option(min=0.0, help="0 takes the likeliest token; above 0 samples.")
    ] = 0.0,
    top_p: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Sample from this share of the probability.")
    ] = 1.0,
    seed: Annotated[int, typer.Option(min=0, help="Of the samples.")] = 0,
    dtype: DtypeOption = Dtype.AUTO,
    chat: Annotated[
        bool | None,
        typer.Option(
            "--chat/--no-chat",
            help="Wrap the prompt in the model's chat template. Default: if it has one.",
            show_default=False,
        ),
    ] = None,
    ring: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Number of processes that share the tokens of prompt and cache, each with the "
            "whole model; instead of --ranks.",
            show_default=False,
        ),
    ] = None,
    launcher: LauncherOption = Launcher.TORCHRUN,
    address: Address = None,
    nodes: Nodes = 1,
    threads: Threads = None,
    pin: Pin = None,
    timeout_s: TimeoutS = 60.0,
) -> None:
    """Write a model's answer to stdout, as it comes; everything else goes to stderr."""
    if top_p < 1.0 and temperature == 0.0:
        raise typer.BadParameter("--top-p needs a --temperature above 0: greedy has no choice")
    if ring is not None and ranks is not None:
        raise typer.BadParameter("--ring shares the tokens, --ranks the model: give one of them")
    check_launcher(launcher, address, nodes, pin)
    _run(
        "launch.recipes.generate:run" if ring is None else "launch.recipes.generate_ring:run",
        launcher=launcher,
        address=address,
        nodes=nodes,
        model=model,
        ranks=ranks if ring is None else ring,
        threads=threads,
        pin=pin,
        timeout_s=timeout_s,
        prompt=prompt,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        seed=seed,
        dtype=dtype.value,
        chat=chat,
    )


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
        passed = _run(
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
        passed = _run(
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
        passed = _run(
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


def _run(
    recipe: str,
    *,
    model: str | None,
    ranks: int | None,
    threads: int | None,
    pin: bool | None,
    timeout_s: float,
    default_ranks: int = 2,
    launcher: Launcher = Launcher.TORCHRUN,
    address: str | None = None,
    nodes: int = 1,
    **args: object,
) -> object:
    """Prepare the model, if there is one, run a recipe on its ranks; return rank 0's result."""
    from launch.console import ConsoleReporter
    from launch.job import JobSpec
    from launch.models import prepare_model
    from launch.report import SilentReporter
    from launch.torchrun import choose_ranks, is_quiet_rank

    reporter = SilentReporter() if is_quiet_rank() else ConsoleReporter()
    num_ranks = choose_ranks(ranks, max(default_ranks, nodes))
    if model is not None:
        args["model"] = str(prepare_model(model, reporter))
    spec = JobSpec(
        recipe=recipe,
        ranks=num_ranks,
        nodes=nodes,
        args=args,
        timeout_s=timeout_s,
        num_threads=threads,
        pin=pin,
    )
    return run_with(launcher, spec, reporter, address)


def main() -> None:
    """Run the command line and exit."""
    try:
        app()
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
