"""tolerance.py: it accepts what the policy accepts, refuses the rest, names the worst."""

import math

import pytest
import torch

from tokenfabric.testing.tolerance import (
    assert_close,
    assert_same_bits,
    assert_same_nonfinite,
    measure_error,
    ulp,
    ulp_distance,
)

FLOATS = (torch.float32, torch.bfloat16, torch.float16)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("value", [1.0, 1.5, 3.0, 0.75, 1e-3, 6e4, 1e-7, 0.0])
def test_ulp_is_the_distance_to_the_next_number(dtype: torch.dtype, value: float) -> None:
    """The spacing equals that of torch.nextafter, denormals and zero included."""
    here = torch.tensor([value], dtype=dtype)
    # nextafter is not implemented for half: step the bits of a non-negative number instead.
    bits = torch.int32 if dtype == torch.float32 else torch.int16
    after = (here.view(bits) + 1).view(dtype)
    assert ulp(here, dtype).item() == (after.double() - here.double()).item()
    assert ulp(-here, dtype).item() == ulp(here, dtype).item()


@pytest.mark.parametrize("dtype", FLOATS)
def test_ulp_distance_counts_steps_across_zero(dtype: torch.dtype) -> None:
    """Distances count representable numbers, zero has one place, NaN is beyond every number."""
    tiny = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps  # the smallest denormal
    first = torch.tensor([1.0, tiny, 0.0, math.nan, math.nan, 2.0], dtype=dtype)
    second = torch.tensor([1.0, -tiny, -0.0, math.nan, 1.0, 1.0], dtype=dtype)
    steps_per_octave = round(1 / torch.finfo(dtype).eps)
    expected = [0, 2, 0, 0, torch.iinfo(torch.int64).max, steps_per_octave]
    assert ulp_distance(first, second).tolist() == expected


def test_assert_close_allows_one_ulp_and_names_the_worst_element() -> None:
    """One step away passes, two steps away fail with coordinate and both values."""
    reference = torch.tensor([[1.0, 2.0], [3.0, -5.0]], dtype=torch.float64)
    actual = reference.to(torch.bfloat16)
    actual[1, 0] += ulp(reference, torch.bfloat16)[1, 0].item()
    assert_close(actual, reference)
    actual[1, 0] += ulp(reference, torch.bfloat16)[1, 0].item()
    with pytest.raises(
        AssertionError, match=r"normed: .*worst at \[1, 0\]: got 3.03125, ref.* 3.0"
    ):
        assert_close(actual, reference, what="normed")


def test_assert_close_scales_with_the_baseline() -> None:
    """Twice the baseline's error is accepted, more is not."""
    reference = torch.zeros(4, dtype=torch.float64)
    baseline = torch.tensor([0.0, 0.0, 0.0, 0.5])
    assert_close(torch.tensor([1.0, 0.0, 0.0, 0.0]), reference, baseline)
    with pytest.raises(AssertionError, match=r"baseline 0\.5"):
        assert_close(torch.tensor([1.01, 0.0, 0.0, 0.0]), reference, baseline)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_nonfinite_values_are_compared_by_position_first(bad: float) -> None:
    """A NaN or infinity fails wherever the reference has none, and is required where it has one."""
    reference = torch.tensor([0.0, bad, 1.0], dtype=torch.float64)
    assert_close(reference.to(torch.bfloat16), reference)
    for wrong in ([0.0, 0.0, 1.0], [bad, bad, 1.0], [0.0, -bad if bad == bad else 7.0, 1.0]):
        with pytest.raises(AssertionError, match="misplaced"):
            assert_close(torch.tensor(wrong, dtype=torch.bfloat16), reference)


def test_a_reference_that_overflows_the_dtype_must_be_infinite() -> None:
    """Positions are judged after rounding the reference to the dtype of the result."""
    reference = torch.tensor([3.4e38 * 4], dtype=torch.float64)
    assert_same_nonfinite(torch.tensor([math.inf], dtype=torch.bfloat16), reference)
    with pytest.raises(AssertionError, match="misplaced"):
        assert_same_nonfinite(torch.tensor([3.38e38], dtype=torch.bfloat16), reference)


def test_a_nan_result_never_passes() -> None:
    """All-NaN output fails although every comparison with NaN is false."""
    with pytest.raises(AssertionError, match="nan misplaced in 3 of 3"):
        assert_close(torch.full((3,), math.nan), torch.zeros(3, dtype=torch.float64))


def test_measure_error_of_nothing_is_zero() -> None:
    """Empty tensors agree."""
    assert measure_error(torch.empty(0, 4), torch.empty(0, 4).double()).worst_ratio == 0.0


def test_wrong_shapes_and_references_are_refused() -> None:
    """A shape mismatch never broadcasts and a reference in low precision is a mistake."""
    with pytest.raises(AssertionError, match="shape"):
        assert_close(torch.zeros(2, 1), torch.zeros(2, 2).double())
    with pytest.raises(TypeError, match="float64"):
        assert_close(torch.zeros(2), torch.zeros(2))


def test_same_bits_tells_zero_from_minus_zero_and_reports_both_values() -> None:
    """Bits are compared, and the message holds coordinate, values and bits."""
    expected = torch.tensor([[0.0, 1.0], [math.nan, 2.0]], dtype=torch.bfloat16)
    assert_same_bits(expected.clone(), expected)
    with pytest.raises(
        AssertionError, match=r"1 of 4 .*\[0, 0\]: got -0.0 \(0x8000\), expected 0.0"
    ):
        assert_same_bits(torch.where(expected == 0, -0.0, expected), expected)
    other = expected.clone()
    other[1, 1], other[0, 1] = 2.5, 1.25
    with pytest.raises(
        AssertionError, match=r"x: 2 of 4 elements differ in bits, worst at \[1, 1\]"
    ):
        assert_same_bits(other, expected, what="x")
    with pytest.raises(AssertionError, match=r"expected torch\.float32"):
        assert_same_bits(expected, expected.float())
