"""The options that several commands of cli.py share. Imports neither torch nor transformers."""

from enum import StrEnum
from typing import Annotated

import typer


class Dtype(StrEnum):
    """Data type of weights and activations."""

    AUTO = "auto"
    BF16 = "bf16"
    FP32 = "fp32"


class Partition(StrEnum):
    """How the tokens of a sequence are dealt to ranks."""

    CONTIGUOUS = "contiguous"
    ZIGZAG = "zigzag"
    STRIPED = "striped"


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
Threads = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Compute threads of each process. Default: one for each physical core it gets.",
        show_default=False,
    ),
]
Pin = Annotated[
    bool | None,
    typer.Option(
        "--pin/--no-pin",
        help="Keep each process on cores of its own. Default: if there are enough, and not below "
        "torchrun.",
        show_default=False,
    ),
]
