"""The simulator against what others have measured, apart from what it was calibrated on."""

from benchmarks.published_runs import calibration, kernel_points, prefill_points


def test_calibration_uses_twelve_points_and_no_more() -> None:
    """Every stated point is one of the published ones."""
    known = calibration()
    stated = [*known["kernel_points"], *known["prefill_points"]]
    assert len(stated) == len(set(stated)) == 12
    used = [p.label for p in (*prefill_points(), *kernel_points()) if p.is_calibration]
    assert sorted(used) == sorted(stated)


def test_prefills_are_predicted() -> None:
    """Mean error at most 3 %, none over 8 %; Mixtral at 1k, bound by the host, is not counted."""
    scored = [p for p in prefill_points() if p.is_scored and not p.is_calibration]
    assert len(scored) == 55
    errors = {p.label: abs(p.error) for p in scored}
    assert sum(errors.values()) / len(errors) <= 0.03
    assert {label: error for label, error in errors.items() if error > 0.08} == {}


def test_kernels_are_predicted_by_block_count() -> None:
    """Every point of both sweeps within 10 %."""
    points = [p for p in kernel_points() if not p.is_calibration]
    assert len(points) == 114
    assert {p.label: p.error for p in points if abs(p.error) > 0.10} == {}
