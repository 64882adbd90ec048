"""A model that stays loaded and answers prompts whose tokens are shared by the ranks of a ring."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from launch.recipes.generate_ring import load_over_ring
from launch.recipes.precision import choose_dtype
from launch.recipes.session import Session
from launch.recipes.text import encode_prompt
from launch.report import Reporter
from tokenfabric import World
from tokenring.integrations.generation import generate
from tokenweave.integrations.unsharded import load_tokenizer


@contextmanager
def open_session(
    world: World,
    reporter: Reporter,
    *,
    model: str,
    tp: int = 1,
    dtype: str = "auto",
    chat: bool | None = None,
) -> Iterator[Session]:
    """Load a model over the ranks; yield what answers. Collective, and so is each answer.

    Args:
        world: the ranks; world.size / tp of them share the tokens.
        reporter: hears what was loaded.
        model: a checkpoint's directory.
        tp: ranks that share the model, ranks that follow each other.
        dtype: "auto", "bf16" or "fp32".
        chat: use the model's chat template; None: if it has one.

    Yields:
        A session as session.py has it, which answers one prompt at a time.

    Raises:
        ConfigError: the checkpoint is not supported, or does not fit into memory.
    """
    directory = Path(model)
    tokenizer = load_tokenizer(directory)
    with load_over_ring(world, directory, choose_dtype(dtype), tp) as (network, ring):
        heads = "" if tp == 1 else f"TP={tp}, "
        reporter.note(f"{directory.name}, {heads}ring of {ring.size}, is ready")

        def session(
            *,
            prompts: list[str],
            batch_size: int,
            max_new_tokens: int,
            temperature: float = 0.0,
            top_p: float = 1.0,
            seed: int = 0,
        ) -> Iterator[tuple[int, str]]:
            assert batch_size == 1, "the cache of a ring holds one sequence"
            torch.manual_seed(seed)
            for index, prompt in enumerate(prompts):
                prompt_ids = encode_prompt(tokenizer, prompt, chat)
                tokens, _ = generate(
                    network,
                    prompt_ids,
                    max_new_tokens=max_new_tokens,
                    temperature=temperature,
                    top_p=top_p,
                    everyone=world,
                )
                answer = tokens[0, prompt_ids.shape[1] :]
                yield index, tokenizer.decode(answer, skip_special_tokens=True)

        yield session
