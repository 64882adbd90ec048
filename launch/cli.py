"""The `tokenfabric` command. Importing it imports neither torch nor transformers.

Exit codes: 0 done, 1 failed (or a check found a difference), 2 the request cannot be met.
"""

import sys
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from launch.failure import Failure

app = typer.Typer(
    name="tokenfabric",
    help="Tensor-parallel LLM inference with fused collectives, on the CPUs of this machine.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


class Dtype(StrEnum):
    """Data type of weights and activations."""

    AUTO = "auto"
    BF16 = "bf16"
    FP32 = "fp32"


Model = Annotated[
    str,
    typer.Option(
        help="A checkpoint's directory (safetensors), a GGUF file, the id of a model in the "
        "Hugging Face cache, or 'smollm2', the demo model."
    ),
]
Ranks = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Number of processes that share the model. Default: 2, or torchrun's.",
        show_default=False,
    ),
]
Prompt = Annotated[str, typer.Option(help="What to say to the model.")]
MaxNewTokens = Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")]
DtypeOption = Annotated[
    Dtype, typer.Option(help="auto: bf16 where this CPU computes in it, otherwise fp32.")
]
TimeoutS = Annotated[
    float, typer.Option(min=1.0, help="Seconds that one process waits for another.")
]


@app.command()
def demo(
    model: Model = "smollm2",
    ranks: Ranks = None,
    prompt: Prompt = "What is a neural network? Answer in two sentences.",
    max_new_tokens: MaxNewTokens = 64,
    dtype: DtypeOption = Dtype.AUTO,
    seconds: Annotated[float, typer.Option(min=1.0, help="About how long to measure.")] = 20.0,
    timeout_s: TimeoutS = 120.0,
) -> None:
    """Answer a prompt with a model shared by 2 processes, then measure what sharing costs."""
    passed = _run(
        "launch.recipes.demo:run",
        model=model,
        ranks=ranks,
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
    timeout_s: TimeoutS = 60.0,
) -> None:
    """Write a model's answer to stdout, as it comes; everything else goes to stderr."""
    if top_p < 1.0 and temperature == 0.0:
        raise typer.BadParameter("--top-p needs a --temperature above 0: greedy has no choice")
    _run(
        "launch.recipes.generate:run",
        model=model,
        ranks=ranks,
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
    model: Model = "smollm2",
    ranks: Ranks = None,
    max_new_tokens: MaxNewTokens = 32,
    timeout_s: TimeoutS = 600.0,
) -> None:
    """Compare the shared model with the same model in one process, in fp32 and in bf16."""
    passed = _run(
        "launch.recipes.verify:run",
        model=model,
        ranks=ranks,
        timeout_s=timeout_s,
        max_new_tokens=max_new_tokens,
    )
    if not passed:
        raise typer.Exit(1)


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


def _run(recipe: str, *, model: str, ranks: int | None, timeout_s: float, **args: object) -> object:
    """Prepare the model, then run a recipe on its ranks; return rank 0's result."""
    from launch.console import ConsoleReporter
    from launch.job import JobSpec
    from launch.models import prepare_model
    from launch.report import SilentReporter
    from launch.torchrun import choose_ranks, is_quiet_rank, run_job

    num_ranks = choose_ranks(ranks)
    folder = prepare_model(model, SilentReporter() if is_quiet_rank() else ConsoleReporter())
    args["model"] = str(folder)
    return run_job(JobSpec(recipe=recipe, ranks=num_ranks, args=args, timeout_s=timeout_s))


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
