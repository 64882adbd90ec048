"""The steps of a run: rows in, loss and new parameters out."""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

import tokenring
from launch.training.config import TrainConfig
from launch.training.documents import Place
from launch.training.mesh import TrainingMesh, deal_parameters
from launch.training.objective import LanguageModelLoss, compute_dtype, decayed_and_not
from launch.training.packing import PackedRow
from tokenfabric.errors import ConfigError
from tokenring.exchange import sum_over_ranks
from tokenring.partition import partition_tokens

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor
    from transformers import PreTrainedModel

Row = PackedRow[Place]


class TrainingDivergedError(ConfigError):
    """The loss or a gradient is no longer a number."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StepResult:
    """One optimizer step; the same on all ranks, but for `seconds`."""

    step: int
    loss: float
    """Mean over the step's learned tokens, before its update."""
    gradient_norm: float
    """Before clipping."""
    learning_rate: float
    tokens: int
    seconds: float
    ring_seconds: float
    """Of them, in attention's messages between the ranks of a ring; the mean over all ranks."""
    parameters_seconds: float
    """Of them, in gathers of parameters and sums of gradients; the mean over all ranks."""

    @property
    def communication_share(self) -> float:
        """Part of the step in which a rank communicated, or waited for others, and computed not."""
        return (self.ring_seconds + self.parameters_seconds) / self.seconds


class Trainer:
    """A model, its optimizer, and the ranks they are dealt over. Methods are collective."""

    def __init__(self, model: "PreTrainedModel", mesh: TrainingMesh, config: TrainConfig) -> None:
        """Take over a model with fp32 parameters, the same on all ranks.

        Raises:
            ConfigError: `tokenring.enable` refuses it.
        """
        self._config = config
        self._mesh = mesh
        self.model = tokenring.enable(model.train(), mesh.ring)
        if config.recompute != "nothing":
            how: dict[str, Any] = {"use_reentrant": False}
            if config.recompute == "all-but-attention":
                how["context_fn"] = tokenring.keep_attention
            model.activation_checkpointing_enable(how)
        self.loss = LanguageModelLoss(model, mesh.ring)
        layers = model.base_model.layers
        deal_parameters(self.loss, layers, mesh, compute_dtype(config.dtype))
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
        config, mesh, start_s = self._config, self._mesh, time.perf_counter()
        ring_s, parameters_s = mesh.ring_seconds(), mesh.parameters_clock.seconds
        learned = max(1, sum(row.num_learned for row in rows))
        total = 0.0
        for share, loss, weight in self._forward(rows, learned):
            # FSDP averages over all ranks what has to be added.
            torch.autograd.backward(share * (weight * mesh.world.size))
            total += loss.item() * weight
        gradients = self._own_gradients()
        # Each rank of a ring has its group's loss, and each rank its own part of the gradients.
        sums = self._over_ranks(
            total / mesh.ring.size,
            torch.nn.utils.get_total_norm(gradients).item() ** 2,
            mesh.ring_seconds() - ring_s,
            mesh.parameters_clock.seconds - parameters_s,
        )
        mean, norm = sums[0], math.sqrt(sums[1])
        if not (math.isfinite(mean) and math.isfinite(norm)):
            raise TrainingDivergedError(
                f"step {step}: the loss is {mean} and the norm of the gradients {norm}: lower "
                f"learning_rate ({config.learning_rate:g}) or lengthen the warm-up "
                f"({config.warmup_steps} steps), and resume from a checkpoint"
            )
        if norm > config.max_gradient_norm:
            torch._foreach_mul_(gradients, config.max_gradient_norm / norm)
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
            ring_seconds=sums[2] / mesh.world.size,
            parameters_seconds=sums[3] / mesh.world.size,
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
        return self._over_ranks(total / self._mesh.ring.size)[0]

    def _forward(self, rows: Sequence[Row], learned: int) -> Iterator[tuple[Tensor, Tensor, float]]:
        """Yield (share, loss, the row's weight in the mean) of this dp group's rows."""
        ring, device, dp = self._mesh.ring, self._mesh.world.device, self._mesh.dp
        for index in range(self._mesh.dp_rank, -(-len(rows) // dp) * dp, dp):
            # Groups without a row left go through one that counts nothing: gathering parameters is
            # collective over all ranks.
            row = rows[min(index, len(rows) - 1)]
            weight = row.num_learned / learned if index < len(rows) else 0.0
            layout = partition_tokens(row.lengths, ring.size, self._config.partition)
            ids = torch.tensor([row.tokens], device=device)
            share, loss = self.loss(
                tokenring.shard(ids, world=ring, layout=layout),
                tokenring.shard_labels(ids, world=ring, layout=layout),
                layout,
            )
            yield share, loss, weight

    def _own_gradients(self) -> list[Tensor]:
        """Return this rank's part of each gradient, to be read or changed."""
        gradients = [p.grad for p in self.loss.parameters() if p.grad is not None]
        return [cast("DTensor", gradient).to_local() for gradient in gradients]

    def _over_ranks(self, *numbers: float) -> list[float]:
        """Return the sums of numbers over all ranks, the same bits on each. Collective."""
        own = torch.tensor(numbers, dtype=torch.float64)
        return sum_over_ranks(self._mesh.world, own).tolist()
