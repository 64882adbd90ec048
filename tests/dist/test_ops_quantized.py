"""allreduce_rmsnorm_quantized: codes and scales are those of plain torch on the plain result."""

from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.library import opcheck

import tokenfabric
import tokenweave
from tests.dist import fused_cases
from tests.dist.fused_cases import EPS, Case, Inputs
from tests.dist.test_ops_fused import digest
from tokenfabric import native
from tokenfabric.testing.poison import assert_overwritten, poison
from tokenfabric.testing.spawn import run_ranks
from tokenfabric.testing.tolerance import assert_same_bits
from tokenfabric.world import World
from tokenweave import QuantizedOutput
from tokenweave.plan import split_rows
from tokenweave.quantized import QuantizedRows, allreduce_rmsnorm_quantized

ALGORITHMS = ("one_shot", "two_shot")
OUTPUTS = [
    QuantizedOutput(
        format=code,
        scaling=scaling,
        scale=0.011 if scaling == "static" else None,
        keeps_normed=keeps,
    )
    for code, scaling, keeps in product(
        ("fp8_e4m3", "int8"), ("static", "per_token", "per_group"), (False, True)
    )
]


def quantize_in_torch(normed: Tensor, output: QuantizedOutput) -> tuple[Tensor, Tensor]:
    """Return (codes, scales) of the last dimension, in plain operations."""
    largest_code = 448.0 if output.format == "fp8_e4m3" else 127.0
    wide, hidden = normed.float(), normed.shape[-1]
    if output.scale is not None:
        scales = torch.tensor(output.scale)
        scale_of_each = scales
    else:
        group = hidden if output.scaling == "per_token" else 128
        padded = torch.nn.functional.pad(wide, (0, -hidden % group))
        grouped = padded.unflatten(-1, (-1, group))
        scales = grouped.abs().amax(-1) / largest_code
        scales = torch.where(scales < torch.finfo(torch.float32).smallest_normal, 1.0, scales)
        scale_of_each = scales.repeat_interleave(group, dim=-1)[..., :hidden]
        if output.scaling == "per_token":
            scales = scales.squeeze(-1)
    bounded = (wide * (1 / scale_of_each)).clamp(-largest_code, largest_code)
    if output.format == "int8":
        return bounded.round().nan_to_num(0).to(torch.int8), scales
    codes = bounded.to(torch.float8_e4m3fn).view(torch.uint8)
    codes = torch.where(bounded.isnan(), 0x7F, codes.int()).to(torch.uint8)
    return codes.view(torch.float8_e4m3fn), scales


def check(
    world: World, inputs: Inputs, output: QuantizedOutput, algorithm: str, **options: Any
) -> QuantizedRows:
    """Compare with quantising in torch what the plain operation returns."""
    x, weight = inputs.partials[world.rank], inputs.weight
    common = {"world": world, "eps": EPS, "bias": inputs.bias, "algorithm": algorithm, **options}
    residual = inputs.residual
    if residual is not None and options.get("residual_layout") == "row_sharded":
        residual = residual[slice(*split_rows(len(x), world.size)[world.rank])].contiguous()
    normed, new_residual = tokenweave.allreduce_rmsnorm(x, residual, weight, **common)
    found = allreduce_rmsnorm_quantized(x, residual, weight, output=output, **common)
    codes, scales = quantize_in_torch(normed, output)
    what = f"{output}, {algorithm}, {options}"
    assert found.quantized.dtype == codes.dtype
    assert_same_bits(found.residual, new_residual, what=f"residual, {what}")
    assert found.scales.shape == scales.shape
    assert_same_bits(found.scales.nan_to_num(7.0), scales.nan_to_num(7.0), what=f"scales, {what}")
    assert torch.equal(found.scales.isnan(), scales.isnan())
    assert_same_bits(found.quantized.view(torch.uint8), codes.view(torch.uint8), what=what)
    assert (found.normed is not None) == output.keeps_normed
    if found.normed is not None:
        assert_same_bits(found.normed, normed, what=f"normed, {what}")
    return found


def _rank_sweep(world: World) -> list[str]:
    digests = []
    shapes = ((0, 8), (1, 33), (world.size + 1, 200), (70, 1000))
    for number, ((tokens, hidden), output) in enumerate(product(shapes, OUTPUTS)):
        dtype = ("bf16", "fp32")[number % 2]
        case = Case(tokens=tokens, hidden=hidden, dtype=dtype, has_bias=number % 3 == 0)
        inputs = fused_cases.make_inputs(case, world.size, number)
        norm = "layer_norm" if number % 4 == 0 else "rms_norm"
        layout = "row_sharded" if number % 5 == 0 else "replicated"
        for algorithm in ALGORITHMS[layout == "row_sharded" :]:
            found = check(world, inputs, output, algorithm, norm=norm, residual_layout=layout)
            digests.append(digest(found.quantized.view(torch.uint8)) + digest(found.scales))
    return digests


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_codes_are_those_of_the_plain_result(world_size: int) -> None:
    """Formats, scales, layouts and algorithms, to the bit, equal on all ranks."""
    first, *others = run_ranks(_rank_sweep, world_size)
    assert all(other == first for other in others)


def test_every_instruction_set_gives_the_same_codes() -> None:
    """Every body this CPU runs, from AVX-512 to scalar code."""
    first, *others = [
        run_ranks(_rank_sweep, 2, environment={"TOKENFABRIC_ISA": isa})
        for isa in native.weave.usable_row_kernels()
    ]
    assert all(other == first for other in others)


def _rank_special_rows(world: World) -> None:
    case = Case(tokens=16, hidden=300, dtype="fp32")
    inputs = fused_cases.make_inputs(case, world.size, 1)
    assert inputs.residual is not None
    inputs.residual.zero_()
    values = (0.0, float("nan"), float("inf"), 1e-40, 1e-30, 1e38, -0.0)
    for index, value in enumerate(values):
        for partial in inputs.partials:
            row = partial[2 * index + 1]
            row[:] = value if index % 2 == 0 else torch.where(torch.arange(300) == 41, value, row)
    # A weight of zeros and of large values makes groups of zeros and normed values beyond range.
    inputs.weight[128:256] = 0.0
    inputs.weight[256] = 1e36
    for output, algorithm in product(OUTPUTS, ALGORITHMS):
        found = check(world, inputs, output, algorithm)
        assert torch.isfinite(found.scales[::2] if found.scales.dim() else found.scales).all()


def test_special_rows_follow_plain_torch() -> None:
    """NaN, infinities, denormals, zeros and saturation, each in its own row or group."""
    run_ranks(_rank_special_rows, 2)


def _rank_out(world: World) -> None:
    case = Case(tokens=9, hidden=200)
    inputs = fused_cases.make_inputs(case, world.size, 1)
    x, weight = inputs.partials[world.rank], inputs.weight
    output = QuantizedOutput(keeps_normed=True)

    def call(**options: Any) -> QuantizedRows:
        return allreduce_rmsnorm_quantized(
            x, inputs.residual, weight, **{"output": output, "world": world, "eps": EPS, **options}
        )

    first = call()
    out = QuantizedRows(
        poison(torch.empty(9, 200)).to(torch.float8_e4m3fn),
        poison(torch.empty_like(first.scales)),
        poison(torch.empty_like(first.residual)),
        poison(torch.empty_like(x)),
    )
    assert call(out=out) is out
    for mine, theirs in zip(out, first, strict=True):
        assert mine is not None
        assert theirs is not None
        width = mine.element_size()
        as_integers = {1: torch.uint8, 2: torch.int16, 4: torch.int32}[width]
        assert_same_bits(mine.view(as_integers), theirs.view(as_integers))
    assert_overwritten(out.scales, what="scales")
    for message, options in (
        ("out.normed must be there exactly", {"out": out._replace(normed=None)}),
        ("out.quantized must be", {"out": out._replace(quantized=first.normed)}),
        ("out.scales must be", {"out": out._replace(scales=first.scales[:3])}),
        ("must be a QuantizedOutput", {"output": "fp8"}),
    ):
        with pytest.raises(tokenfabric.ConfigError, match=message):
            call(**options)
    call()


def test_results_can_be_written_where_they_are_wanted() -> None:
    """`out` is overwritten and returned; one that does not fit is refused."""
    run_ranks(_rank_out, 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "fp4"}, "format must be one of"),
        ({"scaling": "per_channel"}, "scaling must be one of"),
        ({"scaling": "static"}, "static scaling needs a scale"),
        ({"scale": 1.0}, "no other takes one"),
        ({"scaling": "static", "scale": 0.0}, "between"),
        ({"scaling": "static", "scale": float("nan")}, "between"),
    ],
)
def test_an_output_that_cannot_be_is_refused(options: dict[str, Any], message: str) -> None:
    """ConfigError where it is made."""
    with pytest.raises(tokenfabric.ConfigError, match=message):
        QuantizedOutput(**options)


def _rank_mismatch(world: World) -> None:
    x, weight = torch.ones(4, 64), torch.ones(64)
    usual = QuantizedOutput()
    for other in (*OUTPUTS[2:], QuantizedOutput(scaling="static", scale=0.5)):
        output = other if world.rank == 1 else usual
        if other == usual:
            continue
        with pytest.raises(tokenfabric.MismatchError):
            allreduce_rmsnorm_quantized(x, None, weight, output=output, world=world)
    for options in ({"norm": "layer_norm"}, {"numerics": "drop_in"}):
        with pytest.raises(tokenfabric.MismatchError):
            tokenweave.allreduce_rmsnorm(
                x, None, weight, world=world, **(options if world.rank == 1 else {})
            )
    allreduce_rmsnorm_quantized(x, None, weight, output=usual, world=world)


def test_outputs_that_differ_between_ranks_are_refused() -> None:
    """Every option is part of what ranks compare before anything moves."""
    run_ranks(_rank_mismatch, 2)


def quantized_block(x: Tensor, weight: Tensor, world: World) -> tuple[Tensor, ...]:
    found = allreduce_rmsnorm_quantized(
        x * 2, None, weight, output=QuantizedOutput(), world=world, residual_dtype=torch.float32
    )
    return found.quantized.float(), found.scales + 1, found.residual


def _rank_operator(world: World) -> None:
    x, weight, name = torch.randn(5, 72).bfloat16(), torch.ones(72).bfloat16(), world.group_name
    operator = torch.ops.tokenweave.allreduce_rmsnorm_quantized.default
    plain = (x, x.clone(), weight, None, EPS, 0.0)
    opcheck(operator, (*plain, "replicated", "auto", name))
    opcheck(
        operator,
        (x, None, *plain[2:], "row_sharded", "auto", name, "layer_norm", weight, "fused",
         torch.float32, "int8", "per_group", None, True),
    )  # fmt: skip
    eager = quantized_block(x, weight, world)
    compiled = torch.compile(quantized_block, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        for mine, theirs in zip(compiled(x, weight, world), eager, strict=True):
            assert_same_bits(mine, theirs)


def test_the_operator_passes_opcheck_and_compiles() -> None:
    """Its fake returns the right shapes and dtypes; no graph break."""
    run_ranks(_rank_operator, 1, timeout_s=110)
