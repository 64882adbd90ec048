"""`tokenfabric train`: its options, and the job they make. Imports neither torch nor transformers.

The settings are those of `launch.training.config.TrainConfig`, which checks them.
"""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from launch.dispatch import (
    Address,
    Launcher,
    LauncherOption,
    NodeRank,
    Nodes,
    RendezvousOption,
)
from launch.options import Model, Pin, Threads, TimeoutS


class TrainDtype(StrEnum):
    """Data type of computation."""

    BF16 = "bf16"
    FP32 = "fp32"


class Recompute(StrEnum):
    """What of a layer is computed again in the backward."""

    NOTHING = "nothing"
    ALL_BUT_ATTENTION = "all-but-attention"
    LAYERS = "layers"


def train(
    model: Model,
    data: Annotated[
        list[str],
        typer.Option(help="A text file, a .jsonl file, or a folder of them. May be repeated."),
    ],
    output: Annotated[
        Path,
        typer.Option(
            help="The run's folder: checkpoints, metrics.jsonl and the trained model. A run that "
            "is there goes on."
        ),
    ],
    context: Annotated[int, typer.Option(help="Tokens of a row of packed documents.")],
    steps: Annotated[int, typer.Option(help="Steps of the whole run.")],
    ring: Annotated[int, typer.Option(min=1, help="Processes that share a row's tokens.")] = 2,
    dp: Annotated[
        int, typer.Option(min=1, help="Groups of --ring processes, each with rows of its own.")
    ] = 1,
    rows_per_step: Annotated[
        int | None, typer.Option(help="Rows of a step. Default: --dp.", show_default=False)
    ] = None,
    learning_rate: Annotated[float, typer.Option(help="At its highest.")] = 3e-4,
    min_learning_rate: Annotated[float, typer.Option(help="At the end of the cosine.")] = 0.0,
    warmup_steps: Annotated[int, typer.Option(help="Steps in which the rate rises.")] = 0,
    weight_decay: Annotated[float, typer.Option(help="Of matrices.")] = 0.1,
    max_gradient_norm: Annotated[float, typer.Option(help="Gradients are clipped to it.")] = 1.0,
    dtype: Annotated[
        TrainDtype, typer.Option(help="Of computation; kept parameters are fp32.")
    ] = TrainDtype.BF16,
    recompute: Annotated[
        Recompute,
        typer.Option(help="What is computed again in the backward, to save memory."),
    ] = Recompute.ALL_BUT_ATTENTION,
    seed: Annotated[int, typer.Option(help="Of the order of files.")] = 0,
    eval_data: Annotated[
        list[str] | None, typer.Option(help="Like --data, never learned from.", show_default=False)
    ] = None,
    eval_every: Annotated[int, typer.Option(help="Steps between evaluations; 0: none.")] = 0,
    eval_rows: Annotated[int, typer.Option(help="Rows of an evaluation.")] = 4,
    checkpoint_every: Annotated[
        int, typer.Option(help="Steps between checkpoints; 0: one at the end.")
    ] = 0,
    keep_checkpoints: Annotated[int, typer.Option(help="How many are kept.")] = 2,
    max_restarts: Annotated[
        int,
        typer.Option(
            min=0, help="How often to go on from the last checkpoint when a process dies."
        ),
    ] = 0,
    launcher: LauncherOption = Launcher.TORCHRUN,
    address: Address = None,
    nodes: Nodes = 1,
    node_rank: NodeRank = None,
    rendezvous: RendezvousOption = None,
    threads: Threads = None,
    pin: Pin = None,
    timeout_s: TimeoutS = 600.0,
) -> None:
    """Fine-tune a model on text, at long context, over several processes."""
    from launch.train_job import train as train_job
    from launch.training.config import TrainConfig

    train_job(
        model=model,
        data=data,
        output=output,
        config=TrainConfig(
            context=context,
            steps=steps,
            rows_per_step=dp if rows_per_step is None else rows_per_step,
            ring=ring,
            dp=dp,
            learning_rate=learning_rate,
            min_learning_rate=min_learning_rate,
            warmup_steps=warmup_steps,
            weight_decay=weight_decay,
            max_gradient_norm=max_gradient_norm,
            dtype=dtype.value,
            recompute=recompute.value,
            seed=seed,
            eval_every=eval_every,
            eval_rows=eval_rows,
            checkpoint_every=checkpoint_every,
            keep_checkpoints=keep_checkpoints,
        ),
        eval_data=eval_data or (),
        launcher=launcher,
        address=address,
        nodes=nodes,
        node_rank=node_rank,
        rendezvous=rendezvous,
        max_restarts=max_restarts,
        num_threads=threads,
        pin=pin,
        timeout_s=timeout_s,
    )
