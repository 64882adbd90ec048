"""`tokenfabric generate --ring`: every rank has the whole model and a share of the tokens.

The prompt's tokens are sharded, and so is the cache that the new tokens are decoded with. The other
way to share, where every rank has all tokens and a share of the model, is generate.py.
"""

import time
from pathlib import Path

import torch

import tokenring
from launch.memory import require_memory
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
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    dtype: str = "auto",
    chat: bool | None = None,
) -> None:
    """Stream the answer to `reporter`. Collective; all ranks pass the same.

    Args:
        world: the ranks that share the tokens.
        reporter: gets the answer as text, what was done as notes.
        model: a checkpoint's directory; every rank loads all of it.
        prompt: what to say to the model.
        max_new_tokens: longest answer, in tokens.
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
    if world.rank == 0:
        require_memory(directory, chosen.itemsize * world.size, f"{world.size} copies of a model")
    tokenizer = load_tokenizer(directory)
    prompt_ids = encode_prompt(tokenizer, prompt, chat)
    start_s = time.perf_counter()
    network = tokenring.enable(load_unsharded(directory, chosen), world)
    reporter.note(
        f"ring of {world.size}, {dtype_name(chosen)}, {torch.get_num_threads()} thread(s) a rank, "
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
    )
    elapsed_s = time.perf_counter() - start_s
    num_new = tokens.shape[-1] - prompt_ids.shape[-1]
    rows = [cache.layout().num_rows(rank) for rank in range(world.size)]
    sent = sum(channel_of(world).bytes_sent.values())
    reporter.note(
        f"{num_new} tokens after a prompt of {prompt_ids.shape[-1]}, {elapsed_s:.1f} s together; "
        f"cached tokens of each rank: {', '.join(map(str, rows))}; rank 0 sent {sent / 1e6:.2f} MB"
    )
