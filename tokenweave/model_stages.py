"""A model as the executor sees it: blocks, and the reduction after each."""

from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from torch import Tensor

from tokenweave.reduction_protocol import Norm, ReduceNorm

InputsT_contra = TypeVar("InputsT_contra", contravariant=True)
InputsT = TypeVar("InputsT")


class PartialBlock(Protocol[InputsT_contra]):
    """This rank's share of a block (attention or MLP) of a model."""

    def __call__(self, normed: Tensor, inputs: InputsT_contra) -> Tensor:
        """Return this rank's partial sum, [sequences, tokens, hidden], without the block's bias.

        Args:
            normed: [sequences, tokens, hidden], the same on all ranks; must not be kept. All
                tokens of a batch, or a piece of it (split_plan.py), the earlier pieces first.
            inputs: what else the blocks read (masks, positions, cache), of those tokens.
        """
        ...


@dataclass(frozen=True, slots=True)
class Stage(Generic[InputsT]):
    """A block and the reduction after it."""

    block: PartialBlock[InputsT]
    bias: Tensor | None
    """[hidden], complete on every rank; added once, inside the reduction."""
    norm: Norm
    """The norm in front of the next block, or the model's last one."""
    ends_layer: bool
    """The residual after it is a hidden state of the model."""
    is_per_token: bool = False
    """What the block computes of a token depends on that token alone, and on no inputs."""

    def finish(
        self,
        reduce_norm: ReduceNorm,
        x_partial: Tensor,
        residual: Tensor | None,
        out: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Return (input of the next block, residual). Collective; arguments as `ReduceNorm`.

        For models that do more between two blocks than add and normalize, a subclass does more.
        """
        return reduce_norm(x_partial, residual, self.norm, self.bias, out)
