"""`tokenfabric verify`: does a sharded model say what the same model says in one process?

The contract is in checking.py. Every batch is answered greedily by both models, then both are fed
the prompts and the unsharded answer, and their logits compared with a more precise model's. What
loading them cost is told as well (loading.py); it decides nothing.
"""

from pathlib import Path
from typing import Any

import torch

import tokenweave
from launch.memory import require_memory
from launch.recipes.checking import Comparison
from launch.recipes.judge import Batch, Yardstick, greedy_answer, judge
from launch.recipes.loading import LoadCost, load_share, load_whole, loading_rows, loading_table
from launch.recipes.precision import dtype_name
from launch.recipes.text import encode_prompt
from launch.report import Reporter, Table
from tokenfabric import World
from tokenweave.integrations.unsharded import load_reference, load_tokenizer

_SHORT = "The capital of France is"
_LONG = (
    "Tensor parallelism splits the weight matrices of a network over several processes. Each of "
    "them multiplies its share, and after every block the partial sums have to be added. In short,"
)
_DIGITS = "def fibonacci(n):\n    # 0, 1, 1, 2, 3, 5, 8, 13,"
_BATCHES = {
    "one word": ("Once",),
    "a sentence": (_SHORT,),
    "a paragraph": (_LONG,),
    "code": (_DIGITS,),
    "3 prompts, left-padded": (_SHORT, _LONG, _DIGITS),
}


def run(world: World, reporter: Reporter, *, model: str, max_new_tokens: int) -> bool:
    """Compare in fp32 and in bf16, show the tables, return whether all passed. Collective.

    Args:
        world: the ranks that share the model. Rank 0 also runs it alone.
        reporter: gets a table of the comparisons and one of what loading cost.
        model: a checkpoint's directory.
        max_new_tokens: length of an answer, in tokens.

    Raises:
        ConfigError: the checkpoint is not supported, or too large to be loaded three times.
    """
    directory = Path(model)
    if world.rank == 0:
        # The shards, the unsharded model and the reference, which has twice their precision.
        require_memory(directory, 4 + 4 + 8, "verifying a model")
    tokenizer = load_tokenizer(directory)
    batches = {
        name: Batch.of([encode_prompt(tokenizer, prompt, chat=False) for prompt in prompts])
        for name, prompts in _BATCHES.items()
    }
    rows, passed = [], True
    loading: list[tuple[str, ...]] = []
    for dtype in (torch.float32, torch.bfloat16):
        reporter.note(f"{dtype_name(dtype)}: TP={world.size} against one process ...")
        sharded, costs = load_share(directory, world, dtype)
        yardstick = None
        if world.rank == 0:
            yardstick, whole = _load_yardstick(directory, dtype)
            loading += loading_rows(dtype_name(dtype), costs, whole)
        for name, comparison in _verify(world, sharded, yardstick, batches, max_new_tokens):
            rows.append((dtype_name(dtype), name, *_describe(comparison)))
            passed = passed and comparison.passed
    reporter.table(_table(world.size, rows))
    reporter.table(loading_table(loading))
    verdict = torch.tensor([int(passed)])
    tokenweave.broadcast(verdict, world=world)
    return bool(verdict)


def _load_yardstick(directory: Path, dtype: torch.dtype) -> tuple[Yardstick, LoadCost]:
    unsharded, cost = load_whole(directory, dtype)
    return Yardstick(unsharded=unsharded, reference=load_reference(directory, dtype)), cost


def _verify(
    world: World,
    sharded: Any,
    yardstick: Yardstick | None,
    batches: dict[str, Batch],
    max_new_tokens: int,
) -> list[tuple[str, Comparison]]:
    """Return rank 0's verdict on every batch; nothing on the other ranks. Collective."""
    verdicts = []
    for name, batch in batches.items():
        tokens = greedy_answer(sharded, batch, max_new_tokens)
        comparison = judge(world, sharded, batch, tokens, yardstick, checks_split=True)
        if comparison is not None:
            verdicts.append((name, comparison))
    return verdicts


def _describe(comparison: Comparison) -> tuple[str, ...]:
    error, parting = comparison.error, comparison.parting
    greedy = "equal"
    if parting is not None:
        greedy = f"equal up to {parting.position}, margin {parting.margin:.2g}"
    return (
        greedy,
        f"{error.max_error:.2g}",
        f"{error.max_baseline_error:.2g}",
        f"{error.worst_ratio:.0%}",
        _describe_split(comparison),
        "pass" if comparison.passed else "FAIL",
    )


def _describe_split(comparison: Comparison) -> str:
    if not comparison.overlap_is_exact:
        return "overlap changes bits"
    return "" if comparison.split_error is None else f"{comparison.split_error.worst_ratio:.0%}"


def _table(size: int, rows: list[tuple[str, ...]]) -> Table:
    return Table(
        title=f"TP={size} against the same model in one process",
        num_text_columns=3,
        columns=(
            "dtype",
            "prompt",
            "greedy tokens",
            "logit error",
            "unsharded's",
            "of allowed",
            "split",
            "verdict",
        ),
        rows=tuple(rows),
        notes=(
            "Logit errors are the largest, against the same weights in higher precision (fp64 for "
            "fp32, fp32 for bf16). Allowed: twice the unsharded model's error + 1 ulp.",
            "Split: of allowed, with the tokens in two halves; overlap must not change a bit.",
            "fp32 answers must be equal. bf16 answers may part where the reference's margin "
            "between its two likeliest tokens is below twice the logit error.",
        ),
    )
