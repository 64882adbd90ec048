"""`tokenfabric demo`: a shared model answers a prompt; then what the sharing costs is measured.

Four runs of the same model take turns: sharded with the fused reduction, sharded with gloo's
all-reduce and torch's norm, sharded without any communication (wrong numbers; the ceiling that no
reduction can pass), and whole on rank 0 with every core. measuring.py times them.
"""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

import tokenweave
from launch.memory import require_memory
from launch.recipes.checking import Comparison
from launch.recipes.judge import Batch, Yardstick, greedy_answer, judge
from launch.recipes.measuring import WHOLE, Measurement, Speed, measure_variants
from launch.recipes.precision import choose_dtype, dtype_name
from launch.recipes.text import TextStream, encode_prompt
from launch.recipes.threads import host_threads
from launch.report import Reporter, Table
from tokenfabric import World
from tokenfabric.log import LOGGER_NAME
from tokenweave.config import ReductionKind, WeaveConfig
from tokenweave.integrations.unsharded import load_tokenizer


def run(
    world: World,
    reporter: Reporter,
    *,
    model: str,
    prompt: str,
    max_new_tokens: int,
    dtype: str = "auto",
    seconds: float = 20.0,
) -> bool:
    """Answer a prompt, then measure and check the model that answered. Collective.

    Args:
        world: the ranks that share the model. Rank 0 also runs it alone.
        reporter: gets the answer and a table.
        model: a checkpoint's directory.
        prompt: what to say to the model.
        max_new_tokens: longest answer, in tokens.
        dtype: "auto", "bf16" or "fp32".
        seconds: about how long to measure.

    Returns:
        Whether the check passed; True on other ranks than rank 0, which do not check.

    Raises:
        ConfigError: the checkpoint is not supported, or too large to be loaded three times.
    """
    directory, chosen = Path(model), choose_dtype(dtype)
    if world.rank == 0:
        # The shards, the unsharded model and the reference, which has twice their precision.
        require_memory(directory, 4 * chosen.itemsize, "the demo with a model")
    tokenizer = load_tokenizer(directory)
    batch = Batch.of([encode_prompt(tokenizer, prompt)])
    sharded: Any = tokenweave.from_pretrained(directory, world, dtype=chosen)
    reporter.note(
        f"TP={world.size} in {dtype_name(chosen)}: {world.size} processes share the model, "
        f"{torch.get_num_threads()} thread(s) each\n> {prompt}"
    )
    start_s = time.perf_counter()
    tokens = greedy_answer(sharded, batch, max_new_tokens, TextStream(tokenizer, reporter))
    token_s = (time.perf_counter() - start_s) / max(1, int(tokens.count_nonzero()))

    reporter.note(f"measuring for about {seconds:.0f} s: the variants take turns ...")
    yardstick = Yardstick.load(directory, chosen) if world.rank == 0 else None
    sharded_variants = {
        "fused": sharded,
        "gloo": _sibling(sharded, directory, world, "gloo"),
        "free": _sibling(sharded, directory, world, "none"),
    }
    whole = None if yardstick is None else yardstick.unsharded
    measurement = measure_variants(
        world, sharded_variants, whole, batch.ids, token_s=token_s, seconds=seconds
    )
    comparison = judge(world, sharded, batch, tokens, yardstick)
    if comparison is None:
        return True
    reporter.table(_table(world, dtype_name(chosen), measurement, comparison))
    return comparison.passed


def _sibling(sharded: Any, directory: Path, world: World, reduction: ReductionKind) -> Any:
    """Return the same shards with another reduction; the weights are the very same memory."""
    config = WeaveConfig(reduction=reduction)
    with _no_warnings():  # that "none" computes wrong numbers is the point here
        sibling: Any = tokenweave.from_pretrained(directory, world, config, sharded.dtype)
    for own, shared in zip(sibling.parameters(), sharded.parameters(), strict=True):
        own.data = shared.data
    return sibling


@contextmanager
def _no_warnings() -> Iterator[None]:
    logger = logging.getLogger(LOGGER_NAME)
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def _table(world: World, dtype: str, measurement: Measurement, comparison: Comparison) -> Table:
    size = world.size
    names = {
        "fused": f"TP={size}, fused all-reduce + norm",
        "gloo": f"TP={size}, gloo all-reduce, torch norm",
        "free": f"TP={size}, free all-reduce (wrong numbers)",
        WHOLE: f"TP=1, {host_threads(world)} thread(s)",
    }
    speeds = measurement.speeds
    fused, gloo, free = (speeds[name] for name in ("fused", "gloo", "free"))
    return Table(
        title=f"Decoding in {dtype}, {torch.get_num_threads()} thread(s) a rank",
        columns=("", "tokens/s", "p25-p75", "speed", "in reductions"),
        rows=tuple((names[name], *_cells(speed)) for name, speed in speeds.items()),
        notes=(
            f"Fused: {1 / free.relative.median:.0%} of the ceiling that a free all-reduce would "
            f"give, {1 / gloo.relative.median:.2f}x gloo. A second entry of the same code came to "
            f"{fused.relative.median:.2f}x ({fused.relative.min:.2f}-{fused.relative.max:.2f}): "
            "smaller differences mean nothing here.",
            f"Medians of {measurement.num_rounds} rounds of {measurement.segment_tokens} tokens, "
            "all variants in each round. In reductions: on the critical path, that is, of every "
            "reduction the time of the last rank to arrive; the others waited for its computation.",
            _verdict(dtype, comparison),
        ),
    )


def _cells(speed: Speed) -> tuple[str, ...]:
    share = speed.reduction_share
    return (
        f"{speed.tokens_per_s.median:.1f}",
        f"{speed.tokens_per_s.p25:.1f}-{speed.tokens_per_s.p75:.1f}",
        f"{speed.relative.median:.2f}x",
        "-" if share is None else f"{share:.1%}",
    )


def _verdict(dtype: str, comparison: Comparison) -> str:
    error, parting = comparison.error, comparison.parting
    same = "the same answer"
    if parting is not None:
        same = f"the same answer up to token {parting.position} (margin {parting.margin:.2g})"
    return (
        f"Check against the unsharded model: {'passed' if comparison.passed else 'FAILED'}; "
        f"{same}, logit error {error.max_error:.2g} (unsharded {error.max_baseline_error:.2g}). "
        "Equal answers are promised in fp32; `tokenfabric verify` checks both dtypes."
    )
