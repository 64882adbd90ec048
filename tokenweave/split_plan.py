"""The plan of one forward pass whose tokens may be split in two halves. Pure: data and its order.

A model is `num_layers` layers of the same parts (attention, mlp), each ending in a partial sum that
is reduced. Split, the two halves walk the same blocks half a step apart, so that the reduction of
one runs beside the block of the other:

    compute        attn head | attn tail | mlp head | mlp tail | attn head ...
    communication            | r head    | r tail   | r head   | r tail

How the boundary is chosen is in split.py, what the stages cost in block_cost.py; what carries a
plan out is not here.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from tokenfabric.kernel import Kernel
from tokenfabric.schedule import Schedule, Stage

SplitKind = Literal["none", "fused_only", "split"]
Half = Literal["all", "head", "tail"]
Stream = Literal["compute", "communication"]
PlanOp = Literal["embed", "block", "reduce"]

EMBEDDING = -1
"""The block index of the embedding and of the reduction after it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ReductionChoice:
    """How one reduction is done."""

    algorithm: Literal["one_shot", "two_shot"]
    num_sms: int
    """SMs (on CPUs: nothing) that its kernel may hold; 0: as many as it likes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PartPlan:
    """The reductions that end one part of every layer."""

    name: str
    """ "attention" or "mlp"."""
    reductions: tuple[ReductionChoice, ...]
    """Of the head and of the tail; one where the tokens are not split."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PlanStage:
    """One operation on one half. Streams run theirs in list order; across them `waits` order."""

    op: PlanOp
    """embed: this rank's partial sum of the embeddings. block: the partial sum of a part of a
    layer. reduce: all-reduce, residual add and the norm in front of the next block.
    """
    half: Half
    block: int
    """0 .. num_layers * parts - 1 in model order; EMBEDDING. A reduction has its block's."""
    part: int
    """Index of the part within the layer; EMBEDDING for the embedding."""
    stream: Stream
    waits: tuple[int, ...]
    """Indices of stages, all earlier in the list, that must have finished."""
    reduction: ReductionChoice | None = None
    """For reduce."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Piece:
    """A rectangle of a batch [sequences, tokens]: which sequences, which tokens of each."""

    sequences: tuple[int, int]
    tokens: tuple[int, int]

    @property
    def num_tokens(self) -> int:
        """How many tokens it holds."""
        return (self.sequences[1] - self.sequences[0]) * (self.tokens[1] - self.tokens[0])


@dataclass(frozen=True, kw_only=True, slots=True)
class StageWork:
    """What a stage moves and computes on one rank."""

    num_bytes: int = 0
    flops: int = 0
    kernels: tuple[Kernel, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Prediction:
    """What the planner expected, in seconds for the whole model."""

    unfused_s: float
    """All-reduce and norm as two kernels, nothing overlapped."""
    fused_only_s: float
    split_s: float | None
    """At the best boundary; None where no boundary is allowed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SplitPlan:
    """What all ranks do in one forward pass. The same on every rank."""

    kind: SplitKind
    """none: one rank, nothing to reduce. fused_only: all tokens at once, one kernel for each
    reduction. split: two halves.
    """
    num_tokens: int
    """Of the whole batch, flattened sequence after sequence."""
    boundary: int
    """Tokens of the head, 0 < boundary < num_tokens; num_tokens where nothing is split."""
    num_layers: int
    parts: tuple[PartPlan, ...]
    entry: tuple[ReductionChoice, ...]
    """The reductions of the embeddings: of each half, or the one of all."""
    last: ReductionChoice
    """The model's last reduction, which nothing is left to hide."""
    reasons: tuple[str, ...] = ()
    """Why, one sentence each."""
    prediction: Prediction | None = None

    def __post_init__(self) -> None:
        # What a planner got wrong; what a user asks for is checked in split.py.
        inside = 0 < self.boundary < self.num_tokens
        assert inside if self.is_split else self.boundary == self.num_tokens
        assert len(self.entry) == len(self.halves)
        assert all(len(part.reductions) == len(self.halves) for part in self.parts)

    @property
    def is_split(self) -> bool:
        """Whether there are two halves."""
        return self.kind == "split"

    @property
    def halves(self) -> tuple[Half, ...]:
        """The halves in order of execution: ("head", "tail"), or ("all",)."""
        return ("head", "tail") if self.is_split else ("all",)

    @property
    def num_blocks(self) -> int:
        """Blocks of the model: each part of each layer."""
        return self.num_layers * len(self.parts)

    def tokens_of(self, half: Half) -> tuple[int, int]:
        """Return (start, stop) of a half in the flattened batch."""
        return {
            "all": (0, self.num_tokens),
            "head": (0, self.boundary),
            "tail": (self.boundary, self.num_tokens),
        }[half]

    def pieces(self, batch: int) -> tuple[tuple[Piece, ...], ...]:
        """Return the rectangles of a batch [batch, num_tokens / batch] that each half consists of.

        At most two a half: whole sequences, and a part of the one that the boundary cuts. The head
        holds the earlier tokens of that sequence. Example: batch 3 of 4 tokens, boundary 6:
        ((0:1, 0:4), (1:2, 0:2)) and ((1:2, 2:4), (2:3, 0:4)).
        """
        width, rest = divmod(self.num_tokens, batch)
        if rest:
            raise ValueError(f"{self.num_tokens} tokens are no {batch} sequences of one length")
        return tuple(
            _rectangles(*self.tokens_of(half), width) if width else () for half in self.halves
        )

    def stages(self) -> tuple[PlanStage, ...]:
        """Return all operations in an order that one thread can run them in.

        Made once for all plans with the same reductions and kept.
        """
        return _expand(self.halves, self.num_layers, self.parts, self.entry, self.last)

    def lower(self, work: Callable[[PlanStage, int, int], StageWork] | None = None) -> Schedule:
        """Return the plan in the format that simulators time and traces draw.

        Stage i of the schedule is stages()[i]. Every rank does the same, so the resources are those
        of one: "rank 0 compute" and "rank 0 communication".

        Args:
            work: says what a stage for tokens [start, stop) does; nothing if None.
        """
        stages = []
        for stage in self.stages():
            done = StageWork() if work is None else work(stage, *self.tokens_of(stage.half))
            stages.append(
                Stage(
                    resource=f"rank 0 {stage.stream}",
                    op=self.label(stage),
                    num_bytes=done.num_bytes,
                    flops=done.flops,
                    waits=stage.waits,
                    kernels=done.kernels,
                )
            )
        return Schedule(tuple(stages))

    def label(self, stage: PlanStage) -> str:
        """Return a stage's name for people and traces, such as "layer 3 mlp head"."""
        half = "" if stage.half == "all" else f" {stage.half}"
        if stage.block == EMBEDDING:
            what = "embeddings"
        else:
            what = f"layer {stage.block // len(self.parts)} {self.parts[stage.part].name}"
        return f"{'reduce ' if stage.op == 'reduce' else ''}{what}{half}"

    def explain(self) -> str:
        """Return what was decided and why, in lines."""
        lines = [self._headline(), *self.reasons]
        for part in (*self.parts, PartPlan(name="embeddings", reductions=self.entry)):
            lines += [
                f"reduce {part.name}{'' if half == 'all' else ' ' + half}: {_choice_text(choice)}"
                for half, choice in zip(self.halves, part.reductions, strict=True)
            ]
        lines.append(f"the last reduction: {_choice_text(self.last)}")
        return "\n".join(lines)

    def _headline(self) -> str:
        if self.kind == "none":
            return f"{self.num_tokens} tokens on one rank: nothing to reduce, nothing to hide"
        if self.kind == "fused_only":
            return f"{self.num_tokens} tokens, not split: every reduction is one fused kernel"
        return (
            f"{self.num_tokens} tokens split at {self.boundary}: head {self.boundary}, tail "
            f"{self.num_tokens - self.boundary}; reductions run beside the other half's blocks"
        )


def _choice_text(choice: ReductionChoice) -> str:
    return f"{choice.algorithm}, {f'{choice.num_sms} SMs' if choice.num_sms else 'any SMs'}"


def _rectangles(start: int, stop: int, width: int) -> tuple[Piece, ...]:
    pieces = []
    while start < stop:
        sequence, offset = divmod(start, width)
        if offset or stop - start < width:
            end = min(stop, (sequence + 1) * width)
            tokens = (offset, offset + end - start)
            pieces.append(Piece(sequences=(sequence, sequence + 1), tokens=tokens))
        else:
            end = stop - stop % width
            pieces.append(Piece(sequences=(sequence, end // width), tokens=(0, width)))
        start = end
    return tuple(pieces)


@lru_cache(maxsize=64)
def _expand(
    halves: tuple[Half, ...],
    num_layers: int,
    parts: tuple[PartPlan, ...],
    entry: tuple[ReductionChoice, ...],
    last: ReductionChoice,
) -> tuple[PlanStage, ...]:
    communication: Stream = "communication" if len(halves) == 2 else "compute"
    stages = [
        PlanStage(
            op="embed", half="all", block=EMBEDDING, part=EMBEDDING, stream="compute", waits=()
        )
    ]
    reduced: dict[Half, int] = {}
    for half, choice in zip(halves, entry, strict=True):
        reduced[half] = len(stages)
        stages.append(
            PlanStage(
                op="reduce", half=half, block=EMBEDDING, part=EMBEDDING, stream=communication,
                waits=(0,), reduction=choice,
            )
        )  # fmt: skip
    for block in range(num_layers * len(parts)):
        part = block % len(parts)
        head_block = len(stages)
        for half, choice in zip(halves, parts[part].reductions, strict=True):
            # The tail's attention reads the keys and values that the head's has written.
            after_head = (head_block,) if half == "tail" else ()
            index = len(stages)
            stages.append(
                PlanStage(
                    op="block", half=half, block=block, part=part, stream="compute",
                    waits=(*after_head, reduced[half]),
                )
            )  # fmt: skip
            is_last = block == num_layers * len(parts) - 1 and half == halves[-1]
            reduced[half] = len(stages)
            stages.append(
                PlanStage(
                    op="reduce", half=half, block=block, part=part, stream=communication,
                    waits=(index,), reduction=last if is_last else choice,
                )
            )  # fmt: skip
    return tuple(stages)
