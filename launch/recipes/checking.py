"""The contract between a sharded model and the same model in one process, as numbers.

Logits: the error against a reference of higher precision is at most twice the unsharded model's
plus one unit in the last place. Greedy tokens: equal in fp32; in bf16 two models that are equally
right may part, but only at a token where the reference itself hardly prefers one over the other.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from tokenfabric.testing.tolerance import ErrorReport, measure_error

_NOT_FINITE = ErrorReport(
    max_error=math.inf,
    max_baseline_error=0.0,
    worst_ratio=math.inf,
    worst_index=(),
    worst_actual=math.nan,
    worst_reference=0.0,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Answers:
    """What one model makes of a batch of prompts."""

    tokens: Tensor
    """int64 [batch, new tokens]: its own greedy answer."""
    logits: Tensor
    """[batch, tokens, vocabulary]: of the prompts and the unsharded model's answer, which all
    models are fed, so that positions can be compared after answers have parted."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Parting:
    """The first token in which two greedy answers differ."""

    row: int
    position: int
    """In the answer."""
    margin: float
    """By how much the reference prefers its likeliest token there over the next."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """The verdict on one batch."""

    error: ErrorReport
    """Of the sharded model's logits, with the unsharded model's as the baseline."""
    parting: Parting | None
    """None: the answers are equal."""
    may_part: bool
    """Whether a parting is accepted where the reference is undecided: in bf16, not in fp32."""
    split_error: ErrorReport | None = None
    """As `error`, of the logits of split passes; None where they were not asked for."""
    overlap_is_exact: bool = True
    """Overlapped or not, split passes give the same bits on every rank."""

    @property
    def logits_agree(self) -> bool:
        """The errors are within contract."""
        errors = (self.error, self.split_error)
        return all(error is None or error.worst_ratio <= 1.0 for error in errors)

    @property
    def tokens_agree(self) -> bool:
        """The answers are equal, or part where rounding decides."""
        if self.parting is None:
            return True
        decided_by = 2 * max(self.error.max_error, self.error.max_baseline_error)
        return self.may_part and self.parting.margin < decided_by

    @property
    def passed(self) -> bool:
        """All parts of the contract hold."""
        return self.logits_agree and self.tokens_agree and self.overlap_is_exact


def compare(
    sharded: Answers,
    unsharded: Answers,
    reference_logits: Tensor,
    mask: Tensor,
    *,
    split: tuple[Tensor, bool] | None = None,
) -> Comparison:
    """Compare two models' answers to the same prompts.

    Args:
        sharded: logits in bf16 or fp32.
        unsharded: the same shapes and dtype.
        reference_logits: [batch, tokens, vocabulary], of a model with the same weights in higher
            precision.
        mask: [batch, tokens], 0 where a row is padding, whose logits mean nothing.
        split: the sharded model's logits from split passes, and whether overlap changed none.

    A NaN or an infinity that the reference does not have is an infinite error.
    """
    split_error = None
    if split is not None:
        split_error = _error(split[0], unsharded, reference_logits, mask)
    return Comparison(
        error=_error(sharded.logits, unsharded, reference_logits, mask),
        parting=_find_parting(sharded.tokens, unsharded.tokens, reference_logits),
        may_part=sharded.logits.dtype == torch.bfloat16,
        split_error=split_error,
        overlap_is_exact=split is None or split[1],
    )


def _error(logits: Tensor, unsharded: Answers, reference: Tensor, mask: Tensor) -> ErrorReport:
    valid = mask.bool()
    actual, exact = logits[valid], reference[valid].double()
    if not torch.equal(actual.isfinite(), exact.isfinite()):
        return _NOT_FINITE
    return measure_error(actual, exact, unsharded.logits[valid], what="logits")


def _find_parting(tokens: Tensor, expected: Tensor, reference_logits: Tensor) -> Parting | None:
    """Return the parting that the reference is most decided about."""
    differs = tokens != expected
    partings = []
    for row in differs.any(-1).nonzero().flatten().tolist():
        position = int(differs[row].int().argmax())
        # Logits at index i choose the token at i + 1; the answer's first token follows the prompt.
        choosing = reference_logits.shape[1] - expected.shape[1] - 1 + position
        best, next_best = reference_logits[row, choosing].double().topk(2).values.tolist()
        partings.append(Parting(row=row, position=position, margin=best - next_best))
    return max(partings, key=lambda parting: parting.margin, default=None)
