"""Layers that hold one rank's share of a model's weights and return partial sums.

The share of q, k, v, gate and up projections is a plain nn.Linear with fewer rows; only what needs
another forward is here.
"""

import time

import torch.nn.functional as F
from torch import Tensor, nn

from tokenfabric.errors import ConfigError
from tokenfabric.world import World
from tokenweave import ops
from tokenweave.executor import CommunicationStats
from tokenweave.reduction import Reduction
from tokenweave.row_parallel import partial_sum
from tokenweave.shard_plan import Span


class PartialLinear(nn.Module):
    """x -> x W^T for this rank's columns of W: the partial sum of a row-parallel linear layer.

    Takes over the parameters of the nn.Linear that it stands for. `bias`, complete on every rank,
    is not added here: the reduction adds it once.
    """

    def __init__(self, linear: nn.Linear, reduction: Reduction):
        super().__init__()
        self.weight = linear.weight
        self.register_parameter("bias", linear.bias)
        self._reduction = reduction

    def forward(self, x: Tensor) -> Tensor:
        """Return the partial sum [..., out_features] of x [..., local in_features].

        The result may lie in shared memory for the next reduction to read: do not keep it.
        """
        num_tokens = x.shape[:-1].numel()
        out = self._reduction.partial_sum_buffer(num_tokens, self.weight.shape[0], x.dtype)
        return partial_sum(x, self.weight, out)

    def extra_repr(self) -> str:
        return f"in_features={self.weight.shape[1]}, out_features={self.weight.shape[0]}"


class VocabParallelEmbedding(nn.Module):
    """An embedding whose rows are dealt to the ranks: `weight` is this rank's rows."""

    def __init__(self, embedding: nn.Embedding, rows: Span, world: World):
        super().__init__()
        self.weight = embedding.weight
        self.num_embeddings = embedding.num_embeddings
        self._rows = rows
        self._world = world

    def partial(self, ids: Tensor) -> Tensor:
        """Return [..., hidden]: the embedding of the ids whose row is here, zero for the others.

        Raises:
            ConfigError: an id is outside of the vocabulary; on every rank, nothing has moved.
        """
        if ids.numel():
            smallest, largest = (int(bound) for bound in ids.aminmax())
            if smallest < 0 or largest >= self.num_embeddings:
                bad = smallest if smallest < 0 else largest
                raise ConfigError(f"token id {bad} is outside of 0..{self.num_embeddings - 1}")
        local = ids - self._rows.start
        is_elsewhere = (local < 0) | (local >= self._rows.size)
        x_partial = F.embedding(local.masked_fill_(is_elsewhere, 0), self.weight)
        return x_partial.masked_fill_(is_elsewhere.unsqueeze(-1), 0)

    def forward(self, ids: Tensor) -> Tensor:
        """Return the complete embeddings [..., hidden]. Collective."""
        return ops.all_reduce(self.partial(ids), world=self._world)

    def extra_repr(self) -> str:
        return f"{self.num_embeddings}, {self.weight.shape[1]}, rows={tuple(self._rows)}"


class VocabParallelHead(nn.Module):
    """An LM head whose rows are dealt to the ranks; its output is complete on every rank."""

    def __init__(
        self,
        linear: nn.Linear,
        rows: tuple[Span, ...],
        reduction: Reduction,
        stats: CommunicationStats,
    ):
        super().__init__()
        self.weight = linear.weight
        self.bias: nn.Parameter | None
        self.register_parameter("bias", linear.bias)
        self._sizes = tuple(span.size for span in rows)
        self._reduction = reduction
        self._stats = stats

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Return the logits [..., vocabulary], the same bits on every rank. Collective."""
        local = F.linear(hidden_states, self.weight, self.bias)
        start_s = time.perf_counter()
        logits = self._reduction.gather_columns(local, self._sizes)
        self._stats.gather_s += time.perf_counter() - start_s
        self._stats.num_gathers += 1
        return logits

    def extra_repr(self) -> str:
        return f"in_features={self.weight.shape[1]}, out_features={sum(self._sizes)}"
