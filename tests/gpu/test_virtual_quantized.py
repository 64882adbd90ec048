"""8-bit results of the kernels are those of plain torch on the plain result."""

import pytest
import torch

from tests.dist.test_ops_quantized import OUTPUTS, quantize_in_torch
from tests.gpu.problems import changed, make_problem, poison
from tokenfabric.testing.tolerance import assert_same_bits
from tokenweave import QuantizedOutput
from tokenweave.cuda.virtual import VirtualCall, VirtualRanks

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("output", [it for it in OUTPUTS if it.keeps_normed], ids=str)
@pytest.mark.parametrize("form", ["two_shot", "one_shot", "reduce_scatter"])
def test_codes_and_scales_are_those_of_torch(
    device: torch.device, output: QuantizedOutput, form: str
) -> None:
    """To the bit, from the normed rows that the same launch returns."""
    ranks = VirtualRanks(3, device)
    for rows, hidden in ((0, 256), (1, 128), (7, 1000), (20, 4096)):
        call = VirtualCall(rows=rows, hidden=hidden, form=form, quantized=output)  # type: ignore[arg-type]
        problem = make_problem(call, 3, seed=hidden, has_residual=False)
        assert problem.weight is not None
        reduction = ranks.prepare(call)
        poison(reduction.results)
        partials = [it.to(device) for it in problem.partials]
        found = reduction.run(partials, None, problem.weight.to(device))
        torch.cuda.synchronize(device)
        ranks.group.check("test")
        plain = ranks.prepare(changed(call, quantized=None))
        normed = plain.run(partials, None, problem.weight.to(device)).normed
        assert found.codes is not None
        for rank in range(3):
            assert_same_bits(found.normed[rank].cpu(), normed[rank].cpu(), what="normed")
            codes, scales = quantize_in_torch(normed[rank].cpu(), output)
            assert torch.equal(
                found.codes[rank].cpu().view(torch.uint8), codes.view(torch.uint8)
            ), f"codes, rank {rank}, {rows} x {hidden}"
            if found.scales is not None:
                expected = scales.reshape(found.scales[rank].shape)
                assert_same_bits(found.scales[rank].cpu(), expected, what="scales")


def test_zeros_infinities_and_nan(device: torch.device) -> None:
    """A row of zeros has scale 1, an infinite or NaN row keeps that to itself."""
    ranks = VirtualRanks(2, device)
    call = VirtualCall(rows=4, hidden=256, quantized=QuantizedOutput(keeps_normed=True))
    x = torch.randn(4, 256).bfloat16()
    x[0] = 0
    x[1, 3] = float("inf")
    x[2, 5] = float("nan")
    zeros = torch.zeros_like(x)
    weight = torch.ones(256).bfloat16().to(device)
    found = ranks.prepare(call).run([x.to(device), zeros.to(device)], None, weight)
    assert found.scales is not None
    scales = found.scales[0].cpu().flatten()
    assert scales[0] == 1
    assert not scales[1].isfinite()
    assert scales[2].isnan()
    assert scales[3].isfinite()
    assert found.normed[0][3].isfinite().all()
