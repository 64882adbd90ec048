"""The options of `tokenfabric verify` that go with --attention or --ring, and no others with them.

Imports neither torch nor transformers.
"""

from collections.abc import Iterable
from typing import Annotated

import typer

from launch.options import Dtype, Partition

AttentionCheck = Annotated[
    bool,
    typer.Option(
        "--attention",
        help="Instead of a model, check attention over sharded tokens: outputs and gradients "
        "against one device.",
    ),
]
RingCheck = Annotated[
    bool,
    typer.Option(
        "--ring",
        help="Instead of answers, compare the loss over the model's full context on 1, 2 and all "
        "ranks (default 4), which share the tokens.",
    ),
]
Tokens = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="With --attention (default 1024) or --ring (default: the model's context).",
        show_default=False,
    ),
]
TokenPartition = Annotated[
    Partition, typer.Option(help="With --attention or --ring: how tokens are dealt.")
]
Heads = Annotated[int, typer.Option(min=1, help="With --attention: query heads.")]
KvHeads = Annotated[int, typer.Option(min=1, help="With --attention: KV heads.")]
HeadDim = Annotated[int, typer.Option(min=1, help="With --attention: width of a head.")]
AttentionDtype = Annotated[
    Dtype, typer.Option(help="With --attention: of q, k and v; auto as for generate.")
]
Causal = Annotated[bool, typer.Option("--causal/--no-causal", help="With --attention: the mask.")]
Window = Annotated[
    int | None,
    typer.Option(min=1, help="With --attention: how many keys a query sees.", show_default=False),
]
Softcap = Annotated[
    float | None,
    typer.Option(help="With --attention: softcap * tanh(score / softcap).", show_default=False),
]
Strategy = Annotated[
    str, typer.Option(help="With --attention: auto, or the name of what travels, such as kv.")
]

OF_ATTENTION = ("heads", "kv_heads", "head_dim", "dtype", "causal", "window", "softcap", "strategy")
OF_TOKENS = ("tokens", "partition")


def refuse_unused(context: typer.Context, *, is_attention: bool, is_ring: bool) -> None:
    """Refuse what was asked for and would have no effect.

    Raises:
        typer.BadParameter: two checks, or an option of another one.
    """
    if is_attention and is_ring:
        raise typer.BadParameter("--attention and --ring are two checks: give one of them")
    if not is_attention:
        _refuse(context, OF_ATTENTION, "goes with --attention")
    if not (is_attention or is_ring):
        _refuse(context, OF_TOKENS, "goes with --attention or --ring")
    if is_attention:
        _refuse(context, ("model",), "does not go with --attention, which has no model")
    if is_attention or is_ring:
        _refuse(context, ("max_new_tokens",), "does not go with --attention or --ring")


def _refuse(context: typer.Context, names: Iterable[str], why: str) -> None:
    for name in names:
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            raise typer.BadParameter(f"--{name.replace('_', '-')} {why}")
