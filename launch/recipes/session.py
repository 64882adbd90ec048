"""A model that stays loaded and answers batches of prompts, one request after another."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

import tokenweave
from launch.memory import require_memory
from launch.recipes.generate import sampling_arguments
from launch.recipes.precision import choose_dtype
from launch.recipes.text import encode_prompt
from launch.report import Reporter
from tokenfabric import World
from tokenweave.integrations.unsharded import load_tokenizer

Session = Callable[..., Iterator[tuple[int, str]]]


@contextmanager
def open_session(
    world: World, reporter: Reporter, *, model: str, dtype: str = "auto", chat: bool | None = None
) -> Iterator[Session]:
    """Load a model over the ranks; yield what answers. Collective, and so is each answer.

    Args:
        world: the ranks that share the model.
        reporter: hears what was loaded.
        model: a checkpoint's directory.
        dtype: "auto", "bf16" or "fp32".
        chat: use the model's chat template; None: if it has one.

    Yields:
        session(prompts=, batch_size=, max_new_tokens=, temperature=, top_p=, seed=), which yields
        (index of the prompt, answer), batch by batch.

    Raises:
        ConfigError: the checkpoint is not supported, or does not fit into memory.
    """
    chosen = choose_dtype(dtype)
    if world.rank == 0:
        require_memory(Path(model), chosen.itemsize, "a model")
    tokenizer = load_tokenizer(Path(model))
    network: Any = tokenweave.from_pretrained(model, world, dtype=chosen)
    reporter.note(f"{Path(model).name} over {world.size} rank(s) is ready")

    def session(
        *,
        prompts: list[str],
        batch_size: int,
        max_new_tokens: int,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
    ) -> Iterator[tuple[int, str]]:
        torch.manual_seed(seed)
        for first in range(0, len(prompts), batch_size):
            encoded = [
                encode_prompt(tokenizer, prompt, chat)[0]
                for prompt in prompts[first : first + batch_size]
            ]
            ids, mask = _padded_left(encoded, tokenizer.pad_token_id or 0)
            tokens = network.generate(
                ids, attention_mask=mask, max_new_tokens=max_new_tokens,
                **sampling_arguments(temperature, top_p),
            )  # fmt: skip
            for index, row in enumerate(tokens[:, ids.shape[1] :], start=first):
                yield index, tokenizer.decode(row, skip_special_tokens=True)

    yield session


def _padded_left(rows: list[torch.Tensor], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (ids, attention mask), each [rows, longest]; new tokens follow on the right."""
    longest = max(len(row) for row in rows)
    ids = torch.full((len(rows), longest), pad)
    mask = torch.zeros_like(ids)
    for place, row in enumerate(rows):
        ids[place, longest - len(row) :] = row
        mask[place, longest - len(row) :] = 1
    return ids, mask
