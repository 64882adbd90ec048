"""From measured times to a device's numbers. Pure."""

from dataclasses import replace

import pytest

from tokenfabric.errors import ConfigError
from tokenweave.device import Device
from tokenweave.device_tables import load_device
from tokenweave.reduction_cost import reduction_s
from tokenweave.split_plan import ReductionChoice
from tokenweave.tuning import (
    AttentionTime,
    GemmTime,
    Measured,
    ReductionTime,
    fit_line,
    gemm_error,
    refined,
)
from tokenweave.waves import Gemm, TiledGemm

RANKS = 4
HIDDEN = 4096


def times_on(device: Device) -> Measured:
    """Return what a machine with these numbers would measure."""

    def gemm_s(rows: int, n: int, k: int) -> float:
        return TiledGemm(Gemm(name="g", n=n, k=k), device).kernel(rows).duration_s(device.num_sms)

    def attention_s(tokens: int) -> float:
        flops = 4.0 * tokens * (tokens + 1) / 2 * 2048
        return device.attention_start_s + flops / device.attention_flops_per_sm / device.num_sms

    def fused_s(algorithm: str, tokens: int) -> float:
        choice = ReductionChoice(
            algorithm="one_shot" if algorithm == "one_shot" else "two_shot", num_sms=0
        )
        return reduction_s("fused", choice, tokens, HIDDEN, RANKS, device)

    sizes = [(rows, n, 4096) for rows in (1, 256, 1024, 4096) for n in (4096, 14336)]
    return Measured(
        gemms=tuple(GemmTime(rows=m, n=n, k=k, seconds=gemm_s(m, n, k)) for m, n, k in sizes),
        attention=tuple(
            AttentionTime(tokens=it, columns=2048, seconds=attention_s(it)) for it in (512, 8192)
        ),
        reductions=tuple(
            ReductionTime(algorithm=name, tokens=it, hidden=HIDDEN, seconds=fused_s(name, it))
            for name in ("one_shot", "two_shot")
            for it in (8, 1024, 16384)
        ),
        copied_bytes=1 << 30,
        copy_s=(1 << 30) / device.memory_bandwidth,
        elementwise_s=device.elementwise_start_s,
        stage_s=0.0,
    )


def test_numbers_of_another_machine_are_found() -> None:
    """From the times of a machine that is not as the table says, its own numbers come back."""
    base = load_device("cpu")
    machine = replace(
        base,
        gemm_flops_per_sm=31e9,
        gemm_start_s=4e-5,
        attention_flops_per_sm=17e9,
        attention_start_s=7e-5,
        memory_bandwidth=5e9,
        elementwise_start_s=3e-6,
        link_bandwidth=3e9,
        two_shot_start_s=9e-5,
        one_shot_start_s=6e-5,
    )
    found = refined(base, times_on(machine), RANKS)
    assert found == pytest.approx({name: getattr(machine, name) for name in found}, rel=1e-6)
    gemms = times_on(machine).gemms
    assert gemm_error(replace(base, **found), gemms) < 1e-6 < gemm_error(base, gemms)


def test_a_gpus_rate_is_found_through_its_waves() -> None:
    """Whole waves of tiles are what the times are compared with; the start of a tile is known."""
    base = load_device("h100")
    machine = replace(base, gemm_flops_per_sm=4e12, gemm_start_s=9e-6)
    found = refined(base, replace(times_on(machine), reductions=()), 1)
    assert found["gemm_flops_per_sm"] == pytest.approx(4e12, rel=0.02)
    assert "link_bandwidth" not in found


def test_a_line_through_noise_has_a_start_of_at_least_nothing() -> None:
    """Where the best start is below 0, the line goes through the origin."""
    assert fit_line([(1.0, 3.0), (2.0, 4.0)]).start_s == pytest.approx(2.0)
    low = fit_line([(1.0, 0.5), (2.0, 2.0)])
    assert low.start_s == 0.0
    assert 1.0 / low.rate == pytest.approx(0.6)


@pytest.mark.parametrize("points", [[(1.0, 2.0)], [(1.0, 2.0), (1.0, 3.0)]])
def test_one_size_is_refused(points: list[tuple[float, float]]) -> None:
    """A rate needs two sizes."""
    with pytest.raises(ConfigError, match="measure several"):
        fit_line(points)


def test_times_that_shrink_are_refused() -> None:
    """A machine that was busy with something else says so."""
    with pytest.raises(ConfigError, match="does nothing else"):
        fit_line([(1.0, 3.0), (2.0, 2.0)])
