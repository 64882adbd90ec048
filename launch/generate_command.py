"""`tokenfabric generate`: its options. Imports neither torch nor transformers."""

from typing import Annotated, Any

import typer

from launch.command import run_recipe
from launch.dispatch import (
    Address,
    Launcher,
    LauncherOption,
    NodeRank,
    Nodes,
    RendezvousOption,
    choose_launcher,
)
from launch.options import (
    Dtype,
    DtypeOption,
    MaxNewTokens,
    Model,
    Pin,
    Prompt,
    Ranks,
    Threads,
    TimeoutS,
)


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
    tp: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Number of processes that share the model's heads, on one node; with --ring, so "
            "many for each share of the tokens. Alone it is --ranks.",
            show_default=False,
        ),
    ] = None,
    ring: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Number of shares that the tokens of prompt and cache are dealt in, across nodes "
            "if there are several: --tp times as many processes.",
            show_default=False,
        ),
    ] = None,
    launcher: LauncherOption = Launcher.TORCHRUN,
    address: Address = None,
    nodes: Nodes = 1,
    node_rank: NodeRank = None,
    rendezvous: RendezvousOption = None,
    threads: Threads = None,
    pin: Pin = None,
    timeout_s: TimeoutS = 60.0,
) -> None:
    """Write a model's answer to stdout, as it comes; everything else goes to stderr."""
    if top_p < 1.0 and temperature == 0.0:
        raise typer.BadParameter("--top-p needs a --temperature above 0: greedy has no choice")
    if ranks is not None and (ring is not None or tp is not None):
        raise typer.BadParameter("--ranks or --tp, --ring beside --tp: give one of them")
    how: dict[str, Any] = {}
    recipe, mesh = "launch.recipes.generate:run", {}
    if ring is not None:
        recipe, mesh, how = "launch.recipes.generate_ring:run", {"ring": ring}, {"tp": tp or 1}
    if tp is not None:
        mesh["tp"] = tp
    run_recipe(
        recipe,
        choice=choose_launcher(launcher, address, nodes, node_rank, rendezvous, pin),
        model=model,
        ranks=ranks,
        mesh=mesh,
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
        **how,
    )
