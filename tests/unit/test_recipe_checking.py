"""The contract of `tokenfabric verify` on small tensors: what passes, what fails."""

import math

import pytest
import torch
from torch import Tensor

from launch.recipes.checking import Answers, Comparison, compare

PROMPT, ANSWER, VOCABULARY = 3, 4, 11


def logits(seed: int = 0) -> Tensor:
    """Reference logits of a batch of two, fp64."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, PROMPT + ANSWER, VOCABULARY, dtype=torch.float64, generator=generator)


def judge(
    sharded_error: float,
    *,
    dtype: torch.dtype = torch.float32,
    tokens: Tensor | None = None,
    reference: Tensor | None = None,
    mask: Tensor | None = None,
    split_error: float | None = None,
    overlap_is_exact: bool = True,
) -> Comparison:
    """Compare a model that is `sharded_error` off with one that is 0.01 off."""
    reference = logits() if reference is None else reference
    expected = torch.zeros(2, ANSWER, dtype=torch.int64)
    return compare(
        Answers(
            tokens=expected if tokens is None else tokens,
            logits=(reference + sharded_error).to(dtype),
        ),
        Answers(tokens=expected, logits=(reference + 0.01).to(dtype)),
        reference,
        torch.ones(2, PROMPT + ANSWER, dtype=torch.int64) if mask is None else mask,
        split=None
        if split_error is None
        else ((reference + split_error).to(dtype), overlap_is_exact),
    )


def parted(position: int) -> Tensor:
    """Answers that differ from the expected ones from one position of row 1 on."""
    tokens = torch.zeros(2, ANSWER, dtype=torch.int64)
    tokens[1, position:] = 5
    return tokens


def with_margin(position: int, margin: float) -> Tensor:
    """Reference logits whose two best tokens at an answer's position are `margin` apart."""
    reference = logits()
    row = reference[1, PROMPT - 1 + position]
    row[3], row[5] = 20.0 + margin, 20.0
    return reference


def test_split_passes_are_held_to_the_same_contract() -> None:
    """Their error counts, and overlap must not change a bit."""
    assert judge(0.0, split_error=0.019).passed
    assert not judge(0.0, split_error=0.021).passed
    assert not judge(0.0, split_error=math.nan).passed
    assert not judge(0.0, split_error=0.0, overlap_is_exact=False).passed


def test_error_up_to_twice_the_unsharded_one_passes() -> None:
    """The factor of the contract."""
    assert judge(0.019).passed
    assert not judge(0.021).passed


def test_padding_is_not_compared() -> None:
    """What a model says about a padded position means nothing."""
    reference = logits()
    reference[0, 0] = math.nan
    mask = torch.ones(2, PROMPT + ANSWER, dtype=torch.int64)
    mask[0, 0] = 0
    assert judge(0.01, reference=reference, mask=mask).passed


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_fails(value: float) -> None:
    """A NaN is an error without limit, not one that compares as small."""
    sharded = logits()
    sharded[1, 2, 3] = value
    tokens = torch.zeros(2, ANSWER, dtype=torch.int64)
    answers = Answers(tokens=tokens, logits=sharded.float())
    good = Answers(tokens=tokens, logits=logits().float())
    verdict = compare(answers, good, logits(), torch.ones(2, PROMPT + ANSWER, dtype=torch.int64))
    assert not verdict.passed
    assert verdict.error.max_error == math.inf


def test_fp32_answers_must_be_equal() -> None:
    """However undecided the reference is."""
    verdict = judge(0.01, tokens=parted(2), reference=with_margin(2, 1e-9))
    assert verdict.logits_agree
    assert not verdict.passed


@pytest.mark.parametrize(("margin", "passes"), [(0.001, True), (1.0, False)])
def test_bf16_answers_part_only_where_rounding_decides(margin: float, passes: bool) -> None:
    """The margin at the first differing token decides, not a later one."""
    verdict = judge(0.01, dtype=torch.bfloat16, tokens=parted(2), reference=with_margin(2, margin))
    assert verdict.parting is not None
    assert (verdict.parting.row, verdict.parting.position) == (1, 2)
    assert verdict.parting.margin == pytest.approx(margin)
    assert verdict.tokens_agree is passes


def test_first_token_is_chosen_by_the_prompts_last_logits() -> None:
    """No off-by-one between logits and tokens."""
    verdict = judge(0.01, dtype=torch.bfloat16, tokens=parted(0), reference=with_margin(0, 0.5))
    assert verdict.parting is not None
    assert verdict.parting.margin == pytest.approx(0.5)
