"""allreduce_rmsnorm in its other forms: fp16, LayerNorm, fp32 residuals, drop-in numerics."""

from dataclasses import dataclass
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import tokenfabric
import tokenweave
from tests.dist import fused_cases
from tests.dist.fused_cases import EPS, Case, Inputs
from tests.dist.test_ops_fused import digest
from tokenfabric import native
from tokenfabric.testing.poison import Guarded, assert_overwritten
from tokenfabric.testing.spawn import run_ranks
from tokenfabric.testing.tolerance import assert_close, assert_same_bits, ulp_distance
from tokenfabric.world import World
from tokenweave.plan import split_rows

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
ALGORITHMS = ("one_shot", "two_shot")


@dataclass(frozen=True, kw_only=True, slots=True)
class Form:
    """One call; the shapes come beside it."""

    dtype: str
    norm: str = "rms_norm"
    numerics: str = "fused"
    has_bias: bool = False
    has_fp32_residual: bool = False
    has_fp32_weight: bool = False
    is_sharded: bool = False

    def inputs(self, world: World, tokens: int, hidden: int, seed: int) -> Inputs:
        case = Case(tokens=tokens, hidden=hidden, dtype="fp32", has_bias=self.has_bias)
        exact = fused_cases.make_inputs(case, world.size, seed)
        dtype = DTYPES[self.dtype]
        assert exact.residual is not None
        return Inputs(
            partials=[partial.to(dtype) for partial in exact.partials],
            residual=exact.residual if self.has_fp32_residual else exact.residual.to(dtype),
            bias=None if exact.bias is None else exact.bias.to(dtype),
            weight=exact.weight if self.has_fp32_weight else exact.weight.to(dtype),
        )

    def run(self, world: World, inputs: Inputs, algorithm: str) -> tuple[Tensor, Tensor]:
        """Call on poisoned, guarded, misaligned outputs."""
        x = inputs.partials[world.rank]
        residual = inputs.residual
        assert residual is not None
        if self.is_sharded:
            residual = residual[slice(*split_rows(len(x), world.size)[world.rank])].contiguous()
        out = Guarded(*x.shape, dtype=x.dtype, misalignment_bytes=x.dtype.itemsize)
        residual_out = Guarded(
            *residual.shape, dtype=residual.dtype, misalignment_bytes=residual.dtype.itemsize
        )
        tokenweave.allreduce_rmsnorm(
            x,
            residual,
            inputs.weight,
            world=world,
            eps=EPS,
            bias=inputs.bias,
            residual_layout="row_sharded" if self.is_sharded else "replicated",
            algorithm=algorithm,
            out=out.tensor,
            residual_out=residual_out.tensor,
            norm=self.norm,
            norm_bias=inputs.weight if self.norm == "layer_norm" else None,
            numerics=self.numerics,
        )
        for guarded, what in ((out, "normed"), (residual_out, "residual")):
            guarded.check(what=what)
            assert_overwritten(guarded.tensor, what=what)
        return out.tensor, residual_out.tensor

    def sum_of(self, inputs: Inputs, dtype: torch.dtype) -> Tensor:
        """Partial sums, bias and residual added in `dtype`, the first rounded as promised."""
        s = inputs.partials[0].float()
        for partial in inputs.partials[1:]:
            s = s + partial.float()
        s = s.to(DTYPES[self.dtype])
        for extra in (inputs.bias, inputs.residual):
            if extra is not None:
                s = s.to(dtype) + extra.to(dtype)
        return s.to(dtype)

    def norm_of(self, s: Tensor, inputs: Inputs, dtype: torch.dtype) -> Tensor:
        weight = inputs.weight.to(dtype)
        if self.norm == "layer_norm":
            return F.layer_norm(s, s.shape[-1:], weight, weight, EPS)
        return s * torch.rsqrt(s.square().mean(-1, keepdim=True) + EPS) * weight


def forms() -> list[Form]:
    """All of dtype and norm; every option with each once."""
    found = [
        Form(dtype=dtype, norm=norm, has_bias=has_bias, has_fp32_residual=wide)
        for dtype, norm, has_bias, wide in product(
            ("bf16", "fp16"), ("rms_norm", "layer_norm"), (False, True), (False, True)
        )
    ]
    found += [Form(dtype="fp32", norm="layer_norm", has_bias=bias) for bias in (False, True)]
    found += [
        Form(dtype=dtype, has_fp32_weight=True, has_fp32_residual=wide, is_sharded=wide)
        for dtype, wide in product(("bf16", "fp16"), (False, True))
    ]
    return found


def _rank_sweep(world: World) -> list[str]:
    digests = []
    for number, form in enumerate(forms()):
        for tokens, hidden in ((0, 8), (1, 33), (world.size + 1, 72), (17, 1000)):
            for algorithm in ALGORITHMS[form.is_sharded :]:
                inputs = form.inputs(world, tokens, hidden, 100 * number + tokens)
                what = f"{form}, {tokens}x{hidden}, {algorithm}"
                normed, residual = form.run(world, inputs, algorithm)
                contract = form.sum_of(inputs, torch.float32)
                own = slice(*split_rows(tokens, world.size)[world.rank])
                assert_same_bits(
                    residual,
                    (contract[own] if form.is_sharded else contract).to(residual.dtype),
                    what=f"residual of {what}",
                )
                exact = form.norm_of(contract.double(), inputs, torch.float64)
                baseline = form.norm_of(contract, inputs, torch.float32).to(normed.dtype)
                assert_close(normed, exact, baseline, what=f"normed of {what}")
                digests.append(digest(normed))
    return digests


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_every_form_is_right_and_equal_on_all_ranks(world_size: int) -> None:
    """The residual has the bits of the contract, the norm is within the tolerance policy."""
    first, *others = run_ranks(_rank_sweep, world_size)
    assert all(other == first for other in others)
    assert len(first) >= 150


def test_every_instruction_set_gives_the_same_bits_in_every_form() -> None:
    """Every body this CPU runs, from AVX-512 to scalar code."""
    first, *others = [
        run_ranks(_rank_sweep, 2, environment={"TOKENFABRIC_ISA": isa})
        for isa in native.weave.usable_row_kernels()
    ]
    assert all(other == first for other in others)


def llama_rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    """The lines of Hugging Face's LlamaRMSNorm.forward."""
    wide = x.to(torch.float32)
    variance = wide.pow(2).mean(-1, keepdim=True)
    wide = wide * torch.rsqrt(variance + EPS)
    return weight * wide.to(x.dtype)


def _rank_drop_in(world: World, dtype_name: str) -> tuple[int, float]:
    form = Form(dtype=dtype_name, numerics="drop_in", has_bias=True)
    worst, num_different, count = 0, 0, 0
    for tokens, hidden in ((1, 64), (5, 576), (40, 4096)):
        inputs = form.inputs(world, tokens, hidden, tokens)
        assert inputs.residual is not None
        assert inputs.bias is not None
        s = sum((p.float() for p in inputs.partials[1:]), inputs.partials[0].float())
        # The separate operations: each rounds to the activation dtype.
        s = s.to(DTYPES[dtype_name]) + inputs.bias + inputs.residual
        for algorithm in ALGORITHMS:
            normed, residual = form.run(world, inputs, algorithm)
            assert_same_bits(residual, s, what="residual")
            distance = ulp_distance(normed, llama_rms_norm(s, inputs.weight))
            worst = max(worst, int(distance.max()))
            num_different += int((distance != 0).sum())
            count += distance.numel()
        layer_norm = Form(dtype=dtype_name, numerics="drop_in", norm="layer_norm", has_bias=True)
        normed, residual = layer_norm.run(world, inputs, "auto")
        assert_same_bits(residual, s, what="residual of a LayerNorm")
        exact = layer_norm.norm_of(s.double(), inputs, torch.float64)
        expected = F.layer_norm(s, (hidden,), inputs.weight, inputs.weight, EPS)
        assert_close(normed, exact, expected, what="LayerNorm")
    return worst, num_different / count


@pytest.mark.parametrize(("dtype_name", "most_ulps"), [("bf16", 2), ("fp16", 2), ("fp32", 4)])
def test_drop_in_numerics_round_where_separate_operations_round(
    dtype_name: str, most_ulps: int
) -> None:
    """The residual has torch's bits. So has the norm, but where the mean square, which is added up
    in another order, moves a value across a rounding boundary: then one step before the weight,
    which the product with it can make two.
    """
    for worst, share in run_ranks(_rank_drop_in, 2, dtype_name):
        assert worst <= most_ulps
        assert share < (0.5 if dtype_name == "fp32" else 0.001)


def _rank_batch_invariance(world: World) -> None:
    for form in (
        Form(dtype="bf16", has_bias=True),
        Form(dtype="fp16", norm="layer_norm"),
        Form(dtype="bf16", numerics="drop_in"),
        Form(dtype="bf16", has_fp32_residual=True),
    ):
        # More rows than a block of either algorithm has.
        inputs = form.inputs(world, 150, 4096, 3)
        expected = form.run(world, inputs, "two_shot")
        for rows in ([77], [149, 0, 77], list(range(60, 140)), list(range(149, -1, -1))):
            for algorithm in ALGORITHMS:
                found = form.run(world, inputs.of_rows(torch.tensor(rows)), algorithm)
                for mine, theirs, what in zip(found, expected, ("normed", "residual"), strict=True):
                    assert_same_bits(mine, theirs[rows], what=f"{what}, {form}, {algorithm}")


def test_a_row_depends_on_nothing_but_itself() -> None:
    """Alone, among others, elsewhere in the batch, in either algorithm: the same bits."""
    run_ranks(_rank_batch_invariance, 2)


def _rank_refusals(world: World) -> None:
    x, w = torch.ones(4, 64).bfloat16(), torch.ones(64).bfloat16()

    def refused(message: str, **options: object) -> None:
        arguments = {"residual": None, "weight": w, **options}
        with pytest.raises(tokenfabric.ConfigError, match=message):
            tokenweave.allreduce_rmsnorm(x, world=world, **arguments)

    refused("norm must be one of", norm="batch_norm")
    refused("numerics must be one of", numerics="exact")
    refused("norm_bias is for layer_norm", norm_bias=w)
    refused("norm_bias must be", norm="layer_norm", norm_bias=w.float())
    refused("a residual beside", residual=x.half())
    refused("a residual beside", residual_dtype=torch.float64)
    refused("a residual beside", residual=x.float(), numerics="drop_in")
    refused("residual_dtype is", residual=x, residual_dtype=torch.float32)
    refused("weight must be", weight=w.float(), numerics="drop_in")
    refused("residual_out must be", residual_dtype=torch.float32, residual_out=x.clone())
    _, kept = tokenweave.allreduce_rmsnorm(x, None, w, world=world, residual_dtype=torch.float32)
    assert_same_bits(kept, torch.full((4, 64), float(world.size)))


def test_forms_that_do_not_exist_are_refused() -> None:
    """ConfigError before anything moves, and the world goes on."""
    run_ranks(_rank_refusals, 2)
