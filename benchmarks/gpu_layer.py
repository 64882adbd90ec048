"""Layers of one tensor-parallel rank with the shapes of its share, walked by the real executor.

The world has one rank, so a reduction moves nothing between GPUs: its kernel reads, adds,
normalizes and writes all rows in this GPU's memory, on as many SMs as the plan gives it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.bias import causal_lower_right

from tokenfabric.world import World
from tokenweave.cuda.reduction import GpuReduction
from tokenweave.executor import Executor, PartialBlock, Stage
from tokenweave.halves import HalfInputs, PieceInputs
from tokenweave.model_shape import ModelShape, RankShare
from tokenweave.reduction_protocol import Norm
from tokenweave.row_parallel import partial_sum
from tokenweave.split_plan import PlanStage, SplitPlan, Stream
from tokenweave.stage_runner import InOrder, Perform

EPS = 1e-5
Where = tuple[int, int]
"""The tokens of a half: start and stop in the one sequence."""


class _Attention(nn.Module):
    """A rank's heads: q, k, v in one product, rotary positions, causal attention, o."""

    def __init__(
        self, shape: ModelShape, share: RankShare, num_tokens: int, reduction: GpuReduction
    ) -> None:
        super().__init__()
        self._columns = (share.query_columns, share.kv_columns, share.kv_columns)
        self._head_dim, self._reduction = shape.head_dim, reduction
        self.qkv = _weight(sum(self._columns), shape.hidden)
        self.out = _weight(shape.hidden, share.query_columns)
        angles = torch.arange(num_tokens)[:, None] * 0.01 * torch.arange(1, shape.head_dim + 1)
        self.cos, self.sin = nn.Buffer(angles.cos()), nn.Buffer(angles.sin())
        # The tail's queries see the keys and values that the head's block has left here.
        self.kept = nn.Buffer(torch.zeros(2, num_tokens, share.kv_columns))

    def forward(self, normed: Tensor, where: Where) -> Tensor:
        start, stop = where
        q, k, v = F.linear(normed[0], self.qkv).split(self._columns, dim=-1)
        heads = [it.view(stop - start, -1, self._head_dim) for it in (q, k)]
        cos, sin = self.cos[start:stop, None], self.sin[start:stop, None]
        q, k = (it * cos + it.roll(self._head_dim // 2, -1) * sin for it in heads)
        self.kept[0, start:stop] = k.flatten(1)
        self.kept[1, start:stop] = v
        keys, values = self.kept[:, :stop].view(2, 1, stop, -1, self._head_dim).transpose(2, 3)
        found = F.scaled_dot_product_attention(
            q.transpose(0, 1)[None],
            keys,
            values,
            attn_mask=causal_lower_right(stop - start, stop),
            enable_gqa=q.shape[1] != keys.shape[1],
        )
        return _summed(found.transpose(1, 2).flatten(2), self.out, self._reduction)


class _Mlp(nn.Module):
    """A rank's columns: gate and up in one product, down."""

    def __init__(self, shape: ModelShape, share: RankShare, reduction: GpuReduction) -> None:
        super().__init__()
        self._reduction = reduction
        self.gate_up = _weight(2 * share.intermediate, shape.hidden)
        self.down = _weight(shape.hidden, share.intermediate)

    def forward(self, normed: Tensor, where: Where) -> Tensor:
        gate, up = F.linear(normed, self.gate_up).chunk(2, dim=-1)
        return _summed(F.silu(gate) * up, self.down, self._reduction)


@dataclass(frozen=True)
class _Only:
    """Runs the stages of some streams in order, and leaves out the others."""

    streams: tuple[Stream, ...]
    is_in_order = True

    def run(self, stages: Sequence[PlanStage], perform: Perform) -> None:
        runner = InOrder()
        runner.run([stage for stage in stages if stage.stream in self.streams], perform)


class RankLayers:
    """Some layers of a rank's share of a model, over one sequence."""

    def __init__(
        self, shape: ModelShape, world_size: int, num_layers: int, num_tokens: int, world: World
    ) -> None:
        """Make random weights.

        Args:
            shape: of the whole model.
            world_size: ranks that would share it.
            num_layers: so many of its layers.
            num_tokens: of the sequence.
            world: of one GPU.
        """
        self.num_layers, self.num_tokens, self.hidden = num_layers, num_tokens, shape.hidden
        self._reduction = GpuReduction(world)
        share = shape.largest_share(world_size)
        dtype = torch.bfloat16
        generator = torch.Generator(world.device).manual_seed(0)
        self._norms: list[Norm] = []
        self._stages: list[Stage[Where]] = []
        for _ in range(2 * num_layers + 1):
            norm = nn.RMSNorm(shape.hidden, dtype=dtype, device=world.device)
            self._norms.append(Norm(norm.requires_grad_(requires_grad=False), eps=EPS))
        for index in range(2 * num_layers):
            block: nn.Module = (
                _Mlp(shape, share, self._reduction)
                if index % 2
                else _Attention(shape, share, num_tokens, self._reduction)
            )
            block.to(device=world.device, dtype=dtype)
            for weight in block.parameters():
                nn.init.normal_(weight, std=shape.hidden**-0.5, generator=generator)
            self._stages.append(
                Stage(block=_as_block(block), bias=None, norm=self._norms[index + 1],
                      ends_layer=index % 2 == 1, is_per_token=index % 2 == 1)
            )  # fmt: skip
        self.x_partial = torch.randn(
            1, num_tokens, shape.hidden, generator=generator, device=world.device, dtype=dtype
        )

    def walk(self, plan: SplitPlan, *streams: Stream) -> Callable[[], Tensor]:
        """Return what walks a plan of these layers and returns the last norm.

        Args:
            plan: of `num_tokens` tokens; its number of layers does not matter.
            streams: whose stages alone are done, in order; all of them, overlapped, if none.
        """
        plan = replace(plan, num_layers=self.num_layers)
        runner = _Only(streams) if streams else None
        executor = Executor(self._norms[0], self._stages, self._reduction, runner)
        halves = [
            HalfInputs((PieceInputs(1, stop - start, (start, stop)),))
            for start, stop in map(plan.tokens_of, plan.halves)
        ]
        return lambda: executor.run(self.x_partial, plan, halves)[0]


def _weight(rows: int, columns: int) -> nn.Parameter:
    return nn.Parameter(torch.empty(rows, columns), requires_grad=False)


def _summed(x: Tensor, weight: Tensor, reduction: GpuReduction) -> Tensor:
    rows = x.shape[:-1].numel()
    return partial_sum(x, weight, reduction.partial_sum_buffer(rows, weight.shape[0], x.dtype))


def _as_block(module: nn.Module) -> PartialBlock[Where]:
    def block(normed: Tensor, inputs: Where) -> Tensor:
        found = module(normed, inputs)
        assert isinstance(found, Tensor)
        return found

    return block
