"""Blocks of attention by torch's flash kernels on the GPU, whole and in parts, against fp64."""

from typing import Any

import pytest
import torch

from tests.unit.attention_cases import Case, assert_as_good, backward, by_definition, forward
from tokenring.capability import band_kind
from tokenring.local import implementations
from tokenring.local_flash_cuda import FlashCuda
from tokenring.local_protocol import LocalAttention, row_delta

pytestmark = pytest.mark.gpu
BANDS = [(None, None), (None, 0), (None, 9), (None, -6), (-20, None), (4, None), (-9, 2), (5, 20)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("band", BANDS, ids=str)
@pytest.mark.parametrize("rows", [(1, 1), (1, 53), (37, 1), (37, 53), (53, 37), (301, 707)])
@pytest.mark.parametrize("widths", [(64, 64), (128, 128), (20, 12)], ids=str)
def test_block_against_fp64(
    device: torch.device,
    rows: tuple[int, int],
    widths: tuple[int, int],
    band: Any,
    dtype: torch.dtype,
) -> None:
    """out, lse and all gradients, of the whole block and of its parts with the global lse."""
    case = Case(
        q_rows=rows[0], kv_rows=rows[1], heads_q=8, heads_kv=2, head_dim=widths[0],
        head_dim_v=widths[1], band=band, dtype=dtype,
    )  # fmt: skip
    _check(FlashCuda(), case, device, (1, 3))


@pytest.mark.parametrize("name", ["cudnn", "flash_attn_2", "flash_attn_3", "flash_attn_4"])
def test_other_kernels_against_fp64(device: torch.device, name: str) -> None:
    """What is installed, for the bands that it has; parts of a causal block are other bands."""
    (local,) = (it for it in implementations() if it.capability.name == name)
    capability = local.capability
    if capability.why_unavailable is not None:
        pytest.skip(f"{name} {capability.why_unavailable}")
    for band in BANDS:
        if band_kind(*band) not in capability.bands:
            continue
        for rows in ((1, 53), (37, 53), (53, 37), (301, 707)):
            case = Case(
                q_rows=rows[0], kv_rows=rows[1], heads_q=8, heads_kv=2, head_dim=64,
                head_dim_v=64, band=band, dtype=torch.bfloat16,
            )  # fmt: skip
            is_whole = band != (None, None) and name == "cudnn"
            _check(local, case, device, (1,) if is_whole else (1, 3))


def _check(local: LocalAttention, case: Case, device: torch.device, parts: tuple[int, ...]) -> None:
    operands, dtype = case.tensors(), case.dtype
    expected = by_definition(case, operands, torch.float64)
    baseline = by_definition(case, operands, dtype)
    moved = [x.to(device) for x in operands]
    out, lse = forward(local, case, *moved[:3])
    assert_as_good(out.cpu(), expected[0], baseline[0], "out")
    assert_as_good(lse.cpu(), expected[1], baseline[1], "lse", ulps=8)
    delta = row_delta(moved[3], out).masked_fill(torch.isneginf(lse), 0)
    for num_parts in parts:
        gradients = backward(local, case, moved, lse, delta, num_parts)
        for what, actual, reference, same in zip(
            ("dq", "dk", "dv"), gradients, expected[2:], baseline[2:], strict=True
        ):
            assert_as_good(actual.to(dtype).cpu(), reference, same, what)
