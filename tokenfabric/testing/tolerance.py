"""The one place that says when two results agree.

Moved data: `torch.equal`. Same arithmetic in the same order: `assert_same_bits`. Different order or
precision: `assert_close`, which asks `err <= 2 * err(same-dtype torch) + 1 ulp` against an fp64
reference computed from the same rounded inputs. Positions of NaN and of each infinity come first.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

_MANTISSA_BITS = {torch.float32: 23, torch.bfloat16: 7, torch.float16: 10}
_MIN_EXPONENT = {torch.float32: -126, torch.bfloat16: -126, torch.float16: -14}
_INTEGER_OF_WIDTH = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def ulp(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Spacing of the numbers of `dtype` at each finite |value|, denormals included; fp64.

    Example: bf16 has 7 stored mantissa bits, so at 1.0 it is 2**-7 and at 3.0 it is 2**-6.
    """
    # frexp gives |v| = m * 2**e with m in [0.5, 1), one more than the exponent of 1.m * 2**(e-1).
    exponent = torch.frexp(values.double())[1].double() - 1
    exponent = torch.where(values == 0, float(_MIN_EXPONENT[dtype]), exponent)
    return torch.exp2(exponent.clamp(min=_MIN_EXPONENT[dtype]) - _MANTISSA_BITS[dtype])


def ulp_distance(first: Tensor, second: Tensor) -> Tensor:
    """How many steps of their dtype lie between two tensors, elementwise; int64.

    +0 and -0 are 0 apart, two NaN are 0 apart; NaN and a number are as far apart as can be.
    """
    if first.dtype != second.dtype or first.dtype not in _MANTISSA_BITS:
        raise TypeError(f"need one floating dtype of 16 or 32 bits: {first.dtype}, {second.dtype}")

    def ordered(values: Tensor) -> Tensor:
        # Sign and magnitude to a line: the bits of a negative float count away from zero.
        integers = _bits(values).long()
        lowest = torch.iinfo(_bits(values).dtype).min
        return torch.where(integers < 0, lowest - integers, integers)

    distance = (ordered(first) - ordered(second)).abs()
    both, either = first.isnan() & second.isnan(), first.isnan() ^ second.isnan()
    return distance.masked_fill(both, 0).masked_fill(either, torch.iinfo(torch.int64).max)


@dataclass(frozen=True, kw_only=True, slots=True)
class ErrorReport:
    """How far a result is from its reference, at the element closest to, or beyond, its limit."""

    max_error: float
    """Largest absolute error over finite elements."""
    max_baseline_error: float
    """The same for the same-dtype baseline; 0 without one."""
    worst_ratio: float
    """Largest error / allowed error; at most 1 when the result is accepted."""
    worst_index: tuple[int, ...]
    worst_actual: float
    worst_reference: float

    def __str__(self) -> str:
        return (
            f"max error {self.max_error:.4g} (same-dtype baseline {self.max_baseline_error:.4g}); "
            f"worst at {list(self.worst_index)}: got {self.worst_actual!r}, "
            f"reference {self.worst_reference!r}, {self.worst_ratio:.3g} of the allowed error"
        )


def measure_error(
    actual: Tensor,
    reference: Tensor,
    baseline: Tensor | None = None,
    *,
    factor: float = 2.0,
    ulps: float = 1.0,
    what: str = "result",
) -> ErrorReport:
    """Compare `actual` with an fp64 `reference`; see `assert_close`, which adds the verdict.

    Raises:
        AssertionError: shapes differ, or NaN or infinities are not where the reference has them.
    """
    if actual.shape != reference.shape:
        shapes = f"{tuple(actual.shape)}, reference {tuple(reference.shape)}"
        raise AssertionError(f"{what}: shape {shapes}")
    if reference.dtype != torch.float64:
        raise TypeError(f"the reference is computed in float64, got {reference.dtype}")
    assert_same_nonfinite(actual, reference, what=what)
    finite = torch.isfinite(actual)
    error = _error(actual, reference, finite)
    baseline_error = 0.0
    if baseline is not None:
        # The baseline may overflow where fp32 accumulation does not; that says nothing about error.
        baseline_error = _largest(_error(baseline, reference, finite & torch.isfinite(baseline)))
    at_reference = torch.where(finite, reference, 0.0)
    allowed = factor * baseline_error + ulps * ulp(at_reference, actual.dtype)
    if error.numel() == 0:
        return ErrorReport(
            max_error=0.0, max_baseline_error=0.0, worst_ratio=0.0, worst_index=(),
            worst_actual=0.0, worst_reference=0.0,
        )  # fmt: skip
    ratio = error / allowed
    index = _coordinate(ratio.argmax(), ratio.shape)
    return ErrorReport(
        max_error=_largest(error),
        max_baseline_error=baseline_error,
        worst_ratio=float(ratio[index]),
        worst_index=index,
        worst_actual=float(actual[index]),
        worst_reference=float(reference[index]),
    )


def assert_close(
    actual: Tensor,
    reference: Tensor,
    baseline: Tensor | None = None,
    *,
    factor: float = 2.0,
    ulps: float = 1.0,
    what: str = "result",
) -> ErrorReport:
    """Check `|actual - reference| <= factor * max|baseline - reference| + ulps * ulp(reference)`.

    Args:
        actual: the result, in its own dtype.
        reference: fp64, same shape, computed from the same rounded inputs.
        baseline: the plain torch computation in the dtype of `actual`; None allows `ulps` only.
        factor: how much worse than the baseline is accepted.
        ulps: in units of the last place of `actual.dtype` at the reference.
        what: names the tensor in the error.

    Raises:
        AssertionError: names the worst element, its coordinate, both values, the baseline's error.
    """
    report = measure_error(actual, reference, baseline, factor=factor, ulps=ulps, what=what)
    if not report.worst_ratio <= 1.0:
        raise AssertionError(f"{what}: {report}")
    return report


def assert_same_nonfinite(actual: Tensor, reference: Tensor, *, what: str = "result") -> None:
    """Check that NaN, +inf and -inf are where `reference`, rounded to `actual.dtype`, has them.

    Raises:
        AssertionError: names how many differ, the first coordinate and both values.
    """
    rounded = reference.to(actual.dtype)
    kinds = {"nan": torch.isnan, "+inf": torch.isposinf, "-inf": torch.isneginf}
    for name, is_kind in kinds.items():
        differs = is_kind(actual) != is_kind(rounded)
        if count := int(differs.sum()):
            index = _coordinate(differs.flatten().int().argmax(), differs.shape)
            got, expected = float(actual[index]), float(reference[index])
            raise AssertionError(
                f"{what}: {name} misplaced in {count} of {actual.numel()} elements, first at "
                f"{list(index)}: got {got!r}, reference {expected!r}"
            )


def assert_same_bits(actual: Tensor, expected: Tensor, *, what: str = "result") -> None:
    """Check that two tensors of one dtype and shape hold the same bits (so -0 is not +0).

    Raises:
        AssertionError: names how many differ, the worst element, its coordinate, values and bits.
    """
    if actual.shape != expected.shape or actual.dtype != expected.dtype:
        raise AssertionError(
            f"{what}: {actual.dtype} {tuple(actual.shape)}, "
            f"expected {expected.dtype} {tuple(expected.shape)}"
        )
    bits, expected_bits = _bits(actual), _bits(expected)
    differs = bits != expected_bits
    if not (count := int(differs.sum())):
        return
    gap = torch.where(differs, (actual.double() - expected.double()).abs().nan_to_num(math.inf), -1)
    index = _coordinate(gap.argmax(), gap.shape)
    mask = (1 << 8 * actual.element_size()) - 1
    raise AssertionError(
        f"{what}: {count} of {actual.numel()} elements differ in bits, worst at {list(index)}: "
        f"got {actual[index].item()!r} ({int(bits[index]) & mask:#x}), "
        f"expected {expected[index].item()!r} ({int(expected_bits[index]) & mask:#x})"
    )


def _bits(values: Tensor) -> Tensor:
    return values.contiguous().view(_INTEGER_OF_WIDTH[values.element_size()])


def _error(values: Tensor, reference: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask, (values.double() - reference).abs(), 0.0)


def _largest(values: Tensor) -> float:
    return float(values.max()) if values.numel() else 0.0


def _coordinate(flat_index: Tensor, shape: torch.Size) -> tuple[int, ...]:
    # torch.unravel_index costs 0.5 ms a call, which is most of a comparison of small tensors.
    index, rest = [], int(flat_index)
    for extent in reversed(shape):
        rest, at = divmod(rest, extent)
        index.append(at)
    return tuple(reversed(index))
