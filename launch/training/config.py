"""What a training run is: sizes, rates, and how the ranks are laid out. Pure.

The mesh is dp x ring: `ring` ranks share the tokens of a row, `dp` groups of them take different
rows. The rows of a step, and their order, do not depend on either, so that a run resumed on other
ranks goes on with the same loss.
"""

import math
from dataclasses import dataclass
from typing import Literal, get_args

from tokenfabric.errors import ConfigError

Dtype = Literal["bf16", "fp32"]
Partition = Literal["contiguous", "zigzag", "striped"]
Recompute = Literal["nothing", "all-but-attention", "layers"]


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """One training run, the same on every rank.

    Raises:
        ConfigError: a number is out of range, or the numbers do not fit together.
    """

    context: int
    """Tokens of a row: packed documents, each attending to itself."""
    steps: int
    """Optimizer steps of the whole run, those before a resumption included."""
    rows_per_step: int = 1
    """Rows of one optimizer step, over all dp groups."""
    ring: int = 1
    """Ranks that share a row."""
    partition: Partition = "zigzag"
    """How each document's tokens are dealt to a row's ranks: see `tokenring.partition_tokens`. With
    zigzag, all ranks have equally much of causal attention to compute."""
    dp: int = 1
    """Groups of `ring` ranks; each computes rows_per_step / dp rows of a step."""
    learning_rate: float = 3e-4
    min_learning_rate: float = 0.0
    """At the end of the cosine."""
    warmup_steps: int = 0
    weight_decay: float = 0.1
    """Of matrices; vectors (norms, biases) have none."""
    betas: tuple[float, float] = (0.9, 0.95)
    max_gradient_norm: float = 1.0
    """Over all parameters on all ranks."""
    dtype: Dtype = "bf16"
    """Of computation and parameters in it; the parameters kept, and sums of gradients, are fp32."""
    recompute: Recompute = "all-but-attention"
    """Activation checkpointing: what of a layer is computed again in the backward. Attention's time
    grows with the square of the context and the memory of its result only with the context."""
    seed: int = 0
    """Order of files in each pass over the data."""
    eval_every: int = 0
    """Steps between evaluations; 0: none."""
    eval_rows: int = 4
    """Rows of one evaluation."""
    checkpoint_every: int = 0
    """Steps between checkpoints; 0: only at the end."""
    keep_checkpoints: int = 2

    def __post_init__(self) -> None:
        for name in ("context", "steps", "rows_per_step", "ring", "dp", "eval_rows"):
            _at_least(name, getattr(self, name), 1)
        for name in ("warmup_steps", "eval_every", "checkpoint_every"):
            _at_least(name, getattr(self, name), 0)
        _at_least("keep_checkpoints", self.keep_checkpoints, 1)
        for name in ("learning_rate", "max_gradient_norm"):
            value = getattr(self, name)
            if not (value > 0 and math.isfinite(value)):
                raise ConfigError(f"{name} is {value}: pass a finite number above 0")
        for name in ("min_learning_rate", "weight_decay"):
            value = getattr(self, name)
            if not (value >= 0 and math.isfinite(value)):
                raise ConfigError(f"{name} is {value}: pass a finite number of 0 or more")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ConfigError(f"betas are {self.betas}: pass numbers from 0 to below 1")
        if self.context < 2:
            raise ConfigError("context is 1: a token is learned from the one before, so pass 2")
        if self.context < self.ring:
            raise ConfigError(
                f"context {self.context} is less than ring {self.ring}: a rank would have no token"
            )
        if self.rows_per_step % self.dp:
            raise ConfigError(
                f"rows_per_step {self.rows_per_step} must be a multiple of dp {self.dp}, so that "
                "every group of ranks computes as many rows"
            )
        for name, choices in (("dtype", Dtype), ("partition", Partition), ("recompute", Recompute)):
            if getattr(self, name) not in get_args(choices):
                raise ConfigError(
                    f"{name} is {getattr(self, name)!r}: choose one of "
                    f"{', '.join(get_args(choices))}"
                )

    @property
    def world_size(self) -> int:
        return self.dp * self.ring

    @property
    def tokens_per_step(self) -> int:
        return self.rows_per_step * self.context

    def learning_rate_at(self, step: int) -> float:
        """Return the rate of a step, counted from 0: linear warm-up, then half a cosine.

        rate = min + (peak - min) (1 + cos(pi (step - warmup) / (steps - warmup))) / 2
        """
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        done = (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
        lowest = min(self.min_learning_rate, self.learning_rate)
        falling = (1 + math.cos(math.pi * min(1.0, done))) / 2
        return lowest + (self.learning_rate - lowest) * falling

    def is_due(self, every: int, step: int) -> bool:
        """Return whether what happens each `every` steps happens after step `step` (from 0)."""
        return every > 0 and (step + 1) % every == 0


def _at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise ConfigError(f"{name} is {value}: pass at least {least}")
