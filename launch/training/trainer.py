"""The steps of a run: rows in, loss and new parameters out."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

import tokenring
from launch.training.config import TrainConfig
from launch.training.documents import Place
from launch.training.mesh import TrainingMesh, deal_parameters, whole_tensor
from launch.training.objective import LanguageModelLoss, compute_dtype, decayed_and_not
from launch.training.packing import PackedRow
from tokenfabric.errors import ConfigError
from tokenring.exchange import sum_over_ranks
from tokenring.partition import partition_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Row = PackedRow[Place]


class TrainingDivergedError(ConfigError):
    """The loss or a gradient is no longer a number."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StepResult:
    """One optimizer step; the same on all ranks, but for the seconds."""

    step: int
    loss: float
    """Mean over the step's learned tokens, before its update."""
    gradient_norm: float
    """Before clipping."""
    learning_rate: float
    tokens: int
    seconds: float


class Trainer:
    """A model, its optimizer, and the ranks they are dealt over. Methods are collective."""

    def __init__(self, model: "PreTrainedModel", mesh: TrainingMesh, config: TrainConfig) -> None:
        """Take over a model with fp32 parameters, the same on all ranks.

        Raises:
            ConfigError: `tokenring.enable` refuses it, or it has another context.
        """
        longest = getattr(model.config, "max_position_embeddings", None)
        if longest is not None and config.context > longest:
            raise ConfigError(
                f"context {config.context} is longer than the {longest} positions the model knows: "
                "pass a shorter context"
            )
        self._config = config
        self._mesh = mesh
        self.model = tokenring.enable(model.train(), mesh.ring)
        if config.recompute_layers:
            model.activation_checkpointing_enable()
        self.loss = LanguageModelLoss(model, mesh.ring)
        layers = model.base_model.layers
        deal_parameters(self.loss, layers, mesh.ranks, compute_dtype(config.dtype))
        self.optimizer = torch.optim.AdamW(
            decayed_and_not(self.loss, config.weight_decay),
            lr=config.learning_rate,
            betas=config.betas,
        )

    def step(self, step: int, rows: Sequence[Row]) -> StepResult:
        """Learn from the rows of one step.

        Raises:
            TrainingDivergedError: the loss or the gradients are not finite; nothing was updated.
        """
        config, start_s = self._config, time.perf_counter()
        learned = max(1, sum(row.num_learned for row in rows))
        total = 0.0
        for share, loss, weight in self._forward(rows, learned):
            # FSDP averages over all ranks what has to be added.
            torch.autograd.backward(share * (weight * self._mesh.world.size))
            total += loss.item() * weight
        parameters = list(self.loss.parameters())
        norm = whole_tensor(
            torch.nn.utils.clip_grad_norm_(parameters, config.max_gradient_norm)
        ).item()
        mean = self._over_groups(total)
        if not (torch.isfinite(torch.tensor([mean, norm])).all()):
            raise TrainingDivergedError(
                f"step {step}: the loss is {mean} and the norm of the gradients {norm}: lower "
                f"learning_rate ({config.learning_rate:g}) or lengthen the warm-up "
                f"({config.warmup_steps} steps), and resume from a checkpoint"
            )
        rate = config.learning_rate_at(step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad()
        return StepResult(
            step=step,
            loss=mean,
            gradient_norm=norm,
            learning_rate=rate,
            tokens=sum(len(row.tokens) for row in rows),
            seconds=time.perf_counter() - start_s,
        )

    def evaluate(self, rows: Sequence[Row]) -> float:
        """Return the mean loss over the rows' learned tokens, without learning from them."""
        learned = max(1, sum(row.num_learned for row in rows))
        self.loss.eval()
        try:
            with torch.no_grad():
                total = sum(
                    loss.item() * weight for _, loss, weight in self._forward(rows, learned)
                )
        finally:
            self.loss.train()
        return self._over_groups(total)

    def _forward(self, rows: Sequence[Row], learned: int) -> Iterator[tuple[Tensor, Tensor, float]]:
        """Yield (share, loss, the row's weight in the mean) of this dp group's rows."""
        ring, device, dp = self._mesh.ring, self._mesh.world.device, self._mesh.dp
        for index in range(self._mesh.dp_rank, -(-len(rows) // dp) * dp, dp):
            # Groups without a row left go through one that counts nothing: gathering parameters is
            # collective over all ranks.
            row = rows[min(index, len(rows) - 1)]
            weight = row.num_learned / learned if index < len(rows) else 0.0
            layout = partition_tokens(row.lengths, ring.size)
            ids = torch.tensor([row.tokens], device=device)
            share, loss = self.loss(
                tokenring.shard(ids, world=ring, layout=layout),
                tokenring.shard_labels(ids, world=ring, layout=layout),
                layout,
            )
            yield share, loss, weight

    def _over_groups(self, total: float) -> float:
        """Return the sum of a number over the dp groups; each rank of a ring has its group's."""
        world = self._mesh.world
        whole = sum_over_ranks(world, torch.tensor([total], dtype=torch.float64))
        return whole.item() / self._mesh.ring.size
