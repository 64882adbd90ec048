"""`tokenfabric verify --ring`: a model's loss over its full context, on 1 rank and on several.

Every rank has the whole model. The first 2, then all ranks share the tokens; rank 0 computes the
loss alone as well. The LM head is applied to a chunk of tokens at a time.
"""

import argparse
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

import tokenring
from launch.memory import require_memory
from launch.recipes.precision import dtype_name
from launch.recipes.threads import all_cores
from launch.report import Reporter, Table
from tokenfabric import ConfigError, World
from tokenring.connection import channel_of
from tokenring.exchange import gather_rows
from tokenring.partition import Partition, partition_tokens
from tokenring.sharding import shard, shard_labels, token_cross_entropy
from tokenweave.integrations.unsharded import load_tokenizer, load_unsharded

# The loss is a mean of thousands of terms, each with an fp32 error of about 1e-5 from sums in
# another order; a query that misses one key, or sees one too many, changes it by 1e-3 and more.
_ALLOWED_RELATIVE = 2e-6


@dataclass(frozen=True, kw_only=True, slots=True)
class _Measured:
    """The loss of one number of ranks, and what it took."""

    num_ranks: int
    loss: float
    elapsed_s: float
    bytes_sent: int
    """By all ranks."""


def run(
    world: World,
    reporter: Reporter,
    *,
    model: str,
    tokens: int | None,
    partition: Any = "zigzag",
) -> bool:
    """Show the losses, return whether all are the same. Collective.

    Args:
        world: the most ranks that share the tokens.
        reporter: gets the table.
        model: a checkpoint's directory; every rank loads all of it, in fp32.
        tokens: length of the text; None: the model's whole context.
        partition: how tokens are dealt.

    Raises:
        ConfigError: the checkpoint is not supported, or its context is shorter.
    """
    directory = Path(model)
    if world.rank == 0:
        require_memory(directory, 4 * world.size, f"{world.size} copies of a model")
    network: Any = load_unsharded(directory, torch.float32)
    context = network.config.max_position_embeddings
    num_tokens = context if tokens is None else tokens
    if not 2 * world.size <= num_tokens <= context:
        raise ConfigError(
            f"--tokens {num_tokens} must be from {2 * world.size} to the model's context, {context}"
        )
    ids = _text(directory, num_tokens)
    found: list[_Measured] = []
    for size in sorted({1, min(2, world.size), world.size}):
        reporter.note(f"{size} of {world.size} rank(s) on {num_tokens} tokens ...")
        found += _on_ranks(world, network, ids, size, partition)
    passed = _all_agree(found)
    verdict = gather_rows(world, torch.tensor([[int(passed)]]), (1,) * world.size, terms="verdict")
    reporter.table(_table(num_tokens, dtype_name(torch.float32), partition, found))
    return bool(verdict[0])


def _text(directory: Path, num_tokens: int) -> torch.Tensor:
    """Return [1, tokens] of a text that every installation has: a module of the standard library.

    A tokenizer that makes fewer of it goes through it again.
    """
    tokenizer = load_tokenizer(directory)
    text = Path(argparse.__file__).read_text()
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False)
    if not ids:
        raise ConfigError(f"the tokenizer in {directory} makes no tokens of a text")
    ids = ids * -(-num_tokens // len(ids))
    return torch.tensor([ids[:num_tokens]], dtype=torch.int64)


def _on_ranks(
    world: World, network: Any, ids: torch.Tensor, size: int, partition: Partition
) -> list[_Measured]:
    """Return the measurement of the first `size` ranks, on rank 0. Collective over all ranks."""
    group = dist.new_group(list(range(size))) if dist.is_initialized() else None
    measured = []
    if world.rank < size:
        part = (
            World.from_group(group, timeout_s=world.timeout_s, num_threads=world.num_threads)
            if group is not None
            else world
        )
        try:
            with all_cores(world, size):
                measured.append(_loss(part, network, ids, partition))
        finally:
            if part is not world:
                part.close()
    # The others sleep meanwhile: their cores are the group's.
    world.barrier()
    return measured if world.rank == 0 else []


@torch.no_grad()
def _loss(part: World, network: Any, ids: torch.Tensor, partition: Partition) -> _Measured:
    layout = partition_tokens(ids.shape[1], part.size, partition)
    mine = shard(ids, world=part, layout=layout)
    labels = shard_labels(ids, world=part, layout=layout)
    tokenring.enable(network, part)
    start_s = time.perf_counter()
    try:
        hidden = network.base_model(input_ids=mine, ring_layout=layout).last_hidden_state
        head = network.get_output_embeddings().weight
        _, loss = token_cross_entropy(hidden, head, labels, world=part)
    finally:
        tokenring.disable(network)
    elapsed_s = time.perf_counter() - start_s
    sent = torch.tensor([[sum(channel_of(part).bytes_sent.values())]])
    everyone = gather_rows(part, sent, (1,) * part.size, terms="bytes")
    return _Measured(
        num_ranks=part.size,
        loss=float(loss),
        elapsed_s=elapsed_s,
        bytes_sent=int(sum(everyone)),
    )


def _all_agree(found: list[_Measured]) -> bool:
    """Return whether rank 0's losses are the same; True on ranks that have none."""
    if not found:
        return True
    first = found[0].loss
    allowed = _ALLOWED_RELATIVE * abs(first)
    return all(abs(measured.loss - first) <= allowed for measured in found)


def _table(num_tokens: int, dtype: str, partition: str, found: list[_Measured]) -> Table:
    rows = []
    for measured in found:
        apart = measured.loss - found[0].loss
        rows.append(
            (
                str(measured.num_ranks),
                f"{measured.loss:.7f}",
                f"{apart:+.1e}",
                f"{measured.bytes_sent / 1e6:.1f} MB",
                f"{measured.elapsed_s:.1f} s",
                "pass" if _all_agree([found[0], measured]) else "FAIL",
            )
        )
    return Table(
        title=f"loss over {num_tokens} tokens, {dtype}, {partition} partition",
        columns=("ranks", "loss", "difference", "sent by all", "time", "verdict"),
        rows=tuple(rows),
        notes=(
            f"The loss may differ by {_ALLOWED_RELATIVE:.0e} of itself: sums in another order.",
        ),
    )
