"""Problems for the fused reduction, and what it must return for them.

Three oracles: fp64 from the same rounded inputs (how exact), torch in the same dtype (how exact it
has to be), and the numbers contract itself in fp32 (which bits the residual holds).
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

EPS = 1e-5
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """One call of allreduce_rmsnorm."""

    tokens: int
    hidden: int
    dtype: Literal["bf16", "fp32"] = "bf16"
    algorithm: Literal["auto", "one_shot", "two_shot"] = "auto"
    residual: Literal["none", "replicated", "row_sharded"] = "replicated"
    has_bias: bool = False
    is_gemma: bool = False
    is_in_place: bool = False
    has_fp32_weight: bool = False

    def __str__(self) -> str:
        options = ("has_bias", "is_gemma", "is_in_place", "has_fp32_weight")
        flags = [name.split("_", 1)[1] for name in options if getattr(self, name)]
        shape = f"{self.tokens}x{self.hidden}"
        return "-".join([shape, self.dtype, self.algorithm, self.residual, *flags])

    @property
    def torch_dtype(self) -> torch.dtype:
        return DTYPES[self.dtype]

    @property
    def weight_offset(self) -> float:
        return 1.0 if self.is_gemma else 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Inputs:
    """The same object on every rank; a rank contributes `partials[rank]`."""

    partials: list[Tensor]
    residual: Tensor | None
    bias: Tensor | None
    weight: Tensor

    def of_rows(self, rows: Tensor) -> "Inputs":
        """Return the same problem for some of its rows."""
        return Inputs(
            partials=[partial[rows] for partial in self.partials],
            residual=None if self.residual is None else self.residual[rows],
            bias=self.bias,
            weight=self.weight,
        )


def make_inputs(case: Case, world_size: int, seed: int) -> Inputs:
    """Return inputs that differ between ranks, rows and seeds."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(case.torch_dtype)

    shape = (case.tokens, case.hidden)
    weight = torch.randn(case.hidden, generator=generator)
    return Inputs(
        # Ranks differ in scale too, so that one that is read twice or left out shows.
        partials=[random(*shape) * (rank + 1) for rank in range(world_size)],
        residual=None if case.residual == "none" else random(*shape),
        bias=random(case.hidden) if case.has_bias else None,
        weight=weight if case.has_fp32_weight else weight.to(case.torch_dtype),
    )


def fp64_reference(case: Case, inputs: Inputs) -> tuple[Tensor, Tensor]:
    """Return (normed, residual) without any rounding."""
    s = torch.stack(inputs.partials).double().sum(dim=0)
    for extra in (inputs.bias, inputs.residual):
        if extra is not None:
            s = s + extra.double()
    scale = torch.rsqrt(s.square().mean(dim=-1, keepdim=True) + EPS)
    return s * scale * (inputs.weight.double() + case.weight_offset), s


def same_dtype_baseline(case: Case, inputs: Inputs) -> tuple[Tensor, Tensor]:
    """Return (normed, residual) as unfused torch code computes them in the activation dtype."""
    s = inputs.partials[0]
    for partial in inputs.partials[1:]:
        s = s + partial
    for extra in (inputs.bias, inputs.residual):
        if extra is not None:
            s = s + extra
    weight = inputs.weight.to(case.torch_dtype) + case.weight_offset
    return F.rms_norm(s, (case.hidden,), weight, EPS), s


def contract_residual(case: Case, inputs: Inputs) -> Tensor:
    """Return the residual's bits: fp32 in rank order, the sum rounded once, the rest in fp32."""
    s = inputs.partials[0].float()
    for partial in inputs.partials[1:]:
        s = s + partial.float()
    s = s.to(case.torch_dtype).float()
    for extra in (inputs.bias, inputs.residual):
        if extra is not None:
            s = s + extra.float()
    return s.to(case.torch_dtype)


def sweep(world_size: int) -> Iterator[Case]:
    """Yield the cases of the correctness sweep, a few hundred.

    Every (tokens, hidden, dtype) meets both algorithms; every combination of options meets both
    dtypes on one awkward shape. The product of both lists would tell nothing more: options act on
    elements, shapes on the cutting into blocks, vectors and shares.
    """
    few = sorted({0, 1, world_size - 1, world_size, world_size + 1, 17})
    layouts = ("replicated", "none", "replicated")
    for dtype in ("bf16", "fp32"):
        for index, (tokens, hidden) in enumerate(
            (tokens, hidden) for tokens in few for hidden in (1, 7, 8, 64, 576, 1000, 4096)
        ):
            base = Case(
                tokens=tokens,
                hidden=hidden,
                dtype=dtype,
                residual=layouts[index % 3],
                has_bias=index % 2 == 0,
                is_gemma=index % 4 < 2,
            )
            yield replace(base, algorithm="one_shot")
            yield replace(base, algorithm="two_shot")
        for options in range(16):
            base = Case(
                tokens=world_size + 2,
                hidden=72,
                dtype=dtype,
                has_bias=bool(options & 1),
                is_gemma=bool(options & 2),
                is_in_place=bool(options & 4),
                has_fp32_weight=bool(options & 8),
            )
            yield from (
                replace(base, algorithm=algorithm, residual=residual)
                for algorithm in ("auto", "one_shot", "two_shot")
                for residual in ("none", "replicated", "row_sharded")
                if (algorithm, residual) != ("one_shot", "row_sharded")
            )


def large(world_size: int) -> Iterator[Case]:
    """Yield cases of several blocks: a row more than 512 KiB, and more than 4 MiB of staging."""
    for dtype, rows_per_block in (("bf16", 64), ("fp32", 32)):
        base = Case(tokens=rows_per_block + 1, hidden=4096, dtype=dtype)
        yield replace(base, algorithm="one_shot")
        yield replace(base, algorithm="two_shot")
        yield replace(base, algorithm="two_shot", tokens=world_size * (rows_per_block + 1) - 1)
        yield replace(base, residual="row_sharded", tokens=2 * world_size * rows_per_block + 1)
    yield Case(tokens=1031, hidden=4096, algorithm="one_shot")
    yield Case(tokens=1031, hidden=4096, algorithm="two_shot", is_in_place=True)
