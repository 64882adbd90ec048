"""`tokenfabric generate --ring`: every rank has a share of the tokens.

The prompt's tokens are sharded, and so is the cache that the new tokens are decoded with. Each rank
has the whole model, or, with --tp, some heads of it: the ranks of a tensor-parallel group have the
same tokens, and each goes around a ring with those that have its heads. Where every rank has all
tokens and a share of the model, it is generate.py.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

import tokenring
import tokenweave
from launch.memory import require_memory
from launch.recipes.mesh import ring_of_groups
from launch.recipes.precision import choose_dtype, dtype_name
from launch.recipes.text import TextStream, encode_prompt
from launch.report import Reporter
from tokenfabric import World
from tokenring.connection import channel_of
from tokenring.integrations.generation import generate
from tokenweave.integrations.unsharded import load_tokenizer, load_unsharded


def run(
    world: World,
    reporter: Reporter,
    *,
    model: str,
    prompt: str,
    max_new_tokens: int,
    tp: int = 1,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    dtype: str = "auto",
    chat: bool | None = None,
) -> None:
    """Stream the answer to `reporter`. Collective; all ranks pass the same.

    Args:
        world: the ranks; world.size / tp of them share the tokens.
        reporter: gets the answer as text, what was done as notes.
        model: a checkpoint's directory; a rank loads the share of it that it computes with.
        prompt: what to say to the model.
        max_new_tokens: longest answer, in tokens.
        tp: ranks that share the model, ranks that follow each other.
        temperature: 0 takes the likeliest token, above 0 samples.
        top_p: sample from this share of the probability.
        seed: of the samples.
        dtype: "auto", "bf16" or "fp32".
        chat: use the model's chat template; None: if it has one.

    Raises:
        ConfigError: the checkpoint or an argument is not supported.
    """
    chosen = choose_dtype(dtype)
    directory = Path(model)
    tokenizer = load_tokenizer(directory)
    prompt_ids = encode_prompt(tokenizer, prompt, chat)
    start_s = time.perf_counter()
    with load_over_ring(world, directory, chosen, tp) as (network, ring):
        reporter.note(
            f"{'' if tp == 1 else f'TP={tp}, '}ring of {ring.size}, {dtype_name(chosen)}, "
            f"{torch.get_num_threads()} thread(s) a rank, "
            f"loaded in {time.perf_counter() - start_s:.1f} s"
        )
        torch.manual_seed(seed)
        start_s = time.perf_counter()
        tokens, cache = generate(
            network,
            prompt_ids,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_p=top_p,
            streamer=TextStream(tokenizer, reporter) if world.rank == 0 else None,
            everyone=world,
        )
        elapsed_s = time.perf_counter() - start_s
        num_new = tokens.shape[-1] - prompt_ids.shape[-1]
        rows = [cache.layout().num_rows(rank) for rank in range(ring.size)]
        sent = sum(channel_of(ring).bytes_sent.values())
    reporter.note(
        f"{num_new} tokens after a prompt of {prompt_ids.shape[-1]}, {elapsed_s:.1f} s together; "
        f"cached tokens of each rank: {', '.join(map(str, rows))}; rank 0 sent {sent / 1e6:.2f} MB"
    )


@contextmanager
def load_over_ring(
    world: World, directory: Path, dtype: torch.dtype, tp: int
) -> Iterator[tuple[Any, World]]:
    """Load this rank's share of a model; yield it, enabled, and its ring. Collective.

    Raises:
        ConfigError: the checkpoint is not supported, or does not fit into memory.
    """
    if world.rank == 0:
        copies = world.size // tp
        what = "a model" if copies == 1 else f"{copies} copies of a model"
        require_memory(directory, dtype.itemsize * copies, what)
    if tp == 1:
        yield tokenring.enable(load_unsharded(directory, dtype), world), world
        return
    with ring_of_groups(world, tp) as mesh:
        model = tokenweave.from_pretrained(directory, mesh.tp, dtype=dtype)
        yield tokenring.enable(model, mesh.ring), mesh.ring
