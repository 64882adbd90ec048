"""The tests of tests/gpu are right: without a GPU they pass on a torch version of the kernels, and
fail when that is wrong.
"""

from types import SimpleNamespace

import pytest
import torch

from tests.dist.test_ops_quantized import OUTPUTS
from tests.gpu import test_virtual_fused as fused
from tests.gpu import test_virtual_quantized as quantized
from tests.unit.fake_virtual import FakeVirtualCuda, FakeVirtualReduction
from tokenfabric import native
from tokenweave.cuda import virtual

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _virtual_ranks_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put torch on plain memory in the place of kernels, streams and pinned memory."""
    zeros = torch.zeros

    def without_pinning(*args: object, pin_memory: bool = False, **options: object) -> torch.Tensor:
        return zeros(*args, **options)  # type: ignore[call-overload]

    monkeypatch.setattr(native, "cuda", FakeVirtualCuda, raising=False)
    monkeypatch.setattr(virtual, "kernel_launcher", lambda: None)
    monkeypatch.setattr(torch, "zeros", without_pinning)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device=None: None)
    stream = SimpleNamespace(cuda_stream=0)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: stream)


@pytest.mark.parametrize("form", fused.FORMS)
def test_fused(form: str) -> None:
    """Sizes, widths and dtypes, one of each kind."""
    fused.test_any_number_of_rows(CPU, 3, form)
    fused.test_any_width(CPU, 1000, form)
    fused.test_dtypes_of_weight_and_residual(CPU, torch.float16, form)
    fused.test_dtypes_of_weight_and_residual(CPU, torch.float32, form)


def test_options_and_moves() -> None:
    """Norms, tails, shards, grids, gathers."""
    fused.test_norms_and_terms(CPU, "two_shot")
    fused.test_rows_of_no_whole_vectors(CPU, 577)
    fused.test_sharded_residual(CPU, 2)
    fused.test_any_grid_gives_the_same_bits(CPU, 3)
    fused.test_one_shot_and_two_shot_give_the_same_bits(CPU)
    fused.test_gathered_rows_are_moved_bit_for_bit(CPU, 10, 13)
    fused.test_baseline_computes_the_same(CPU)


@pytest.mark.parametrize("output", [it for it in OUTPUTS if it.keeps_normed], ids=str)
def test_quantized(output: quantized.QuantizedOutput) -> None:
    """Every format and scaling."""
    quantized.test_codes_and_scales_are_those_of_torch(CPU, output, "two_shot")
    quantized.test_codes_and_scales_are_those_of_torch(CPU, output, "reduce_scatter")


def test_special_values() -> None:
    """Zeros, infinities, NaN."""
    quantized.test_zeros_infinities_and_nan(CPU)


def _forgets_a_rank(run: object) -> object:
    def wrong(self: FakeVirtualReduction, x: object, *rest: object) -> None:
        x.by_rank[-1] = x.by_rank[0]  # type: ignore[attr-defined]
        run(self, x, *rest)  # type: ignore[operator]

    return wrong


def _forgets_the_last_rank_s_results(run: object) -> object:
    def wrong(self: FakeVirtualReduction, x: object, _x: int, out: object, *rest: object) -> None:
        out.by_rank[-1] = out.by_rank[0]  # type: ignore[attr-defined]
        run(self, x, _x, out, *rest)  # type: ignore[operator]

    return wrong


@pytest.mark.parametrize("mistake", [_forgets_a_rank, _forgets_the_last_rank_s_results])
def test_wrong_kernels_are_noticed(monkeypatch: pytest.MonkeyPatch, mistake: object) -> None:
    """A partial sum read twice, results that never arrive."""
    monkeypatch.setattr(FakeVirtualReduction, "run", mistake(FakeVirtualReduction.run))  # type: ignore[operator]
    with pytest.raises(AssertionError):
        fused.test_any_number_of_rows(CPU, 3, "two_shot")
