"""How the forward passes of a model go over a world: planned, run, and ended when one fails.

What is asked for is a WeaveConfig; what is decided is a SplitPlan (split_plan.py).
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, TypedDict, Unpack

import torch

from tokenfabric.errors import ConfigError
from tokenweave.auto_split import AutoSplit, shape_of
from tokenweave.communication_thread import CommunicationThread
from tokenweave.config import Graphs, Overlap, Split, WeaveConfig
from tokenweave.cuda.streams import CudaStreams
from tokenweave.reduction_choice import choice_on_world
from tokenweave.split_plan import PartPlan, ReductionChoice, SplitKind, SplitPlan
from tokenweave.stage_runner import InOrder, StageRunner
from tokenweave.stream_runner import StreamRunner

if TYPE_CHECKING:
    from tokenfabric.world import World

PARTS = ("attention", "mlp")


class PassOptions(TypedDict, total=False):
    """The options of WeaveConfig that say how passes are planned and run."""

    split: Split
    overlap: Overlap
    graphs: Graphs


@dataclass(frozen=True, kw_only=True, slots=True)
class PassShape:
    """What a plan of a forward pass depends on. Equal on all ranks."""

    num_sequences: int
    num_tokens: int
    """Of each sequence."""
    hidden: int
    dtype: torch.dtype
    num_layers: int
    keeps_hidden: bool = False
    """Whether every residual is wanted on every rank."""
    cuts: Literal["anywhere", "between sequences", "nowhere"] = "anywhere"
    """Where a boundary may lie."""
    why: str = ""
    """Why not anywhere."""


class Passes:
    """Plans the forward passes of one model on a world, and holds what runs them.

    Attributes:
        rank: this one of the world.
        split_runner: runs the stages of a split pass.
        lends: whether a block may write its partial sum where the next reduction reads it. Set by
            the executor: it knows which reduction is the next.
    """

    def __init__(self, world: "World", config: WeaveConfig | None = None):
        """Settle what does not depend on a pass.

        Raises:
            ConfigError: the world cannot run passes as `config` asks.
        """
        self._world = world
        self.rank = world.rank
        self._config = WeaveConfig() if config is None else config
        # One for all passes: what its stream has allocated is only used again on that stream.
        cuda = world.cuda
        self._beside = None if cuda is None else StreamRunner(CudaStreams(cuda.device))
        self.split_runner: StageRunner = self._runner()
        self.lends = True
        self._auto: AutoSplit | None = None

    @property
    def config(self) -> WeaveConfig:
        """What is asked for now."""
        return self._config

    def know(self, config: dict[str, object], name: str) -> None:
        """Take the model's config, by which split="auto" plans on GPUs."""
        cuda = self._world.cuda
        if cuda is not None:
            self._auto = AutoSplit.of(cuda.capability, *shape_of(config, name))
            if self._config.split == "auto":
                self._auto.log(self.rank)

    @contextlib.contextmanager
    def asked(self, **changes: Unpack[PassOptions]) -> Iterator[None]:
        """Plan and run passes with other options of WeaveConfig within a block. On every rank.

        Raises:
            ConfigError: as WeaveConfig, or the world cannot run passes so.
        """
        config, runner = self._config, self.split_runner
        try:
            self._config = replace(config, **changes)
            self.split_runner = self._runner()
            yield
        finally:
            self._config, self.split_runner = config, runner

    def plan(self, shape: PassShape) -> SplitPlan:
        """Return the plan of a forward pass. Made once for each shape.

        The same on every rank, without communication.
        """
        key = (shape, self._config, self._auto)
        plan: SplitPlan | None = self._world.prepared.get(key)
        if plan is None:
            plan = self._plan(shape)
            self._world.prepared.remember(key, plan)
        return plan

    def abort(self) -> None:
        """Break the world, so that no rank waits for this one. Safe on any thread, at any time."""
        world = self._world
        if world.size > 1 and not world.is_closed and world.broken is None:
            world.host_comm.abort()
            # Between hosts the ranks hear of it when this one looks.
            assert world.broken is not None

    def _runner(self) -> StageRunner:
        if not self._overlaps():
            return InOrder()
        return CommunicationThread(self.abort) if self._beside is None else self._beside

    def _overlaps(self) -> bool:
        world, asked = self._world, self._config.overlap
        refused = None
        if self._config.reduction != "fused":
            refused = f"reduction={self._config.reduction!r}"
        elif world.num_hosts > 1:
            refused = f"ranks on {world.num_hosts} hosts"
        if refused is not None:
            if asked == "on":
                raise ConfigError(
                    f"overlap='on' is for fused reductions between ranks of one host, not for "
                    f"{refused}; use overlap='auto'"
                )
            return False
        if self._beside is not None:
            return asked != "off"
        # Each rank computes with torch's threads and reduces with the world's beside them.
        busy = world.placement.num_ranks * (torch.get_num_threads() + world.num_threads)
        return asked == "on" or (asked == "auto" and busy <= world.placement.num_cores)

    def _plan(self, shape: PassShape) -> SplitPlan:
        num_rows = shape.num_sequences * shape.num_tokens
        if self._config.split == "auto" and self._auto is not None:
            return self._planned(self._auto, shape)
        boundary, reason = self._boundary(shape)
        if boundary is None:
            return self._whole(shape, reason)
        return self._settled(shape, "split", boundary, (boundary, num_rows - boundary), reason)

    def _planned(self, auto: AutoSplit, shape: PassShape) -> SplitPlan:
        """Return what the planner for GPUs makes of a pass."""
        if shape.cuts == "nowhere":
            return self._whole(shape, shape.why)
        if self.split_runner is not self._beside:
            asked = f"reduction={self._config.reduction!r}, overlap={self._config.overlap!r}"
            return self._whole(shape, f"with {asked} nothing would run beside a reduction")
        # A boundary at a multiple of a sequence's length is one between sequences.
        alignment = shape.num_tokens if shape.cuts == "between sequences" else 1
        plan = auto.plan((shape.num_tokens,) * shape.num_sequences, alignment)
        if plan is None:
            return self._whole(shape, auto.reason)
        if plan.is_split:
            return plan
        # How a reduction of all tokens is done, cuda/plan.py knows for these very ranks.
        return replace(self._whole(shape, *plan.reasons), prediction=plan.prediction)

    def _whole(self, shape: PassShape, *reasons: str) -> SplitPlan:
        """Return the plan of a pass that is not split."""
        num_rows = shape.num_sequences * shape.num_tokens
        kind: SplitKind = "none" if self._world.size == 1 else "fused_only"
        return self._settled(shape, kind, num_rows, (num_rows,), *reasons)

    def _boundary(self, shape: PassShape) -> tuple[int | None, str]:
        """Return the tokens of the head, or None for no split; and why."""
        asked = self._config.split
        if asked == "never":
            return None, "split='never'"
        if asked == "auto":
            return None, self._why_nothing_is_gained()
        if shape.cuts == "nowhere":
            return None, shape.why
        if shape.num_tokens <= 1:
            return None, "one token a sequence"
        num_rows, boundary = shape.num_sequences * shape.num_tokens, asked
        if boundary >= num_rows:
            return None, f"{num_rows} tokens are not more than split={asked}"
        if shape.cuts == "between sequences":
            boundary -= boundary % shape.num_tokens
            if boundary == 0:
                return None, f"{shape.why}, and no sequence ends within {asked} tokens"
            return boundary, f"split={asked}, at the end of a sequence: {shape.why}"
        return boundary, f"split={asked}"

    def _why_nothing_is_gained(self) -> str:
        # As a planner's table of either would say: no stream runs beside the blocks.
        if self._world.device.type == "cpu":
            return "ranks on CPU cores: while one reduces, none of its cores is left idle"
        return "nothing is known of the model: Passes.know was not called"

    def _settled(
        self,
        shape: PassShape,
        kind: SplitKind,
        boundary: int,
        sizes: tuple[int, ...],
        *reasons: str,
    ) -> SplitPlan:
        choices = tuple(
            choice_on_world(
                self._world,
                num_tokens=size,
                hidden=shape.hidden,
                dtype=shape.dtype,
                keep_residuals=shape.keeps_hidden,
            )
            for size in sizes
        )
        return _same_everywhere(shape, kind, boundary, choices, reasons)


def _same_everywhere(
    shape: PassShape,
    kind: SplitKind,
    boundary: int,
    choices: tuple[ReductionChoice, ...],
    reasons: tuple[str, ...],
) -> SplitPlan:
    """Return a plan in which all reductions of a half are done in the same way."""
    return SplitPlan(
        kind=kind,
        num_tokens=shape.num_sequences * shape.num_tokens,
        boundary=boundary,
        num_layers=shape.num_layers,
        parts=tuple(PartPlan(name=name, reductions=choices) for name in PARTS),
        entry=choices,
        last=choices[-1],
        reasons=reasons,
    )
