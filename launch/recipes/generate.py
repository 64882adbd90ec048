"""`tokenfabric generate`: a model's answer to one prompt, shared by the ranks of a world."""

import time
from pathlib import Path
from typing import Any

import torch

import tokenweave
from launch.memory import require_memory
from launch.recipes.precision import choose_dtype, dtype_name
from launch.recipes.text import TextStream, encode_prompt
from launch.report import Reporter
from tokenfabric import World
from tokenweave.integrations.unsharded import load_tokenizer


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
        world: the ranks that share the model.
        reporter: gets the answer as text, what was done as notes.
        model: a checkpoint's directory.
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
    if world.rank == 0:
        require_memory(Path(model), chosen.itemsize, "a model")
    tokenizer = load_tokenizer(Path(model))
    prompt_ids = encode_prompt(tokenizer, prompt, chat)
    start_s = time.perf_counter()
    network: Any = tokenweave.from_pretrained(model, world, dtype=chosen)
    reporter.note(
        f"TP={world.size}, {dtype_name(chosen)}, {torch.get_num_threads()} thread(s) a rank, "
        f"loaded in {time.perf_counter() - start_s:.1f} s"
    )
    torch.manual_seed(seed)
    start_s = time.perf_counter()
    tokens = network.generate(
        prompt_ids,
        attention_mask=torch.ones_like(prompt_ids),
        max_new_tokens=max_new_tokens,
        streamer=TextStream(tokenizer, reporter),
        **sampling_arguments(temperature, top_p),
    )
    elapsed_s = time.perf_counter() - start_s
    num_new = tokens.shape[-1] - prompt_ids.shape[-1]
    reporter.note(
        f"{num_new} tokens after a prompt of {prompt_ids.shape[-1]}, {elapsed_s:.1f} s together"
    )


def sampling_arguments(temperature: float, top_p: float) -> dict[str, Any]:
    """Return generate()'s arguments; all are named, so that no default of the model's decides."""
    if temperature == 0.0:
        return {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    return {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": 0}
