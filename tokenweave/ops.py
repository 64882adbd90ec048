"""The collectives of tokenweave on a world of ranks on CPUs or GPUs.

Every function here is collective: all ranks of the world call it with the same shapes, dtype and
options, in the same order. What a rank passes otherwise is noticed on all ranks before anything
moves (MismatchError). Results are private memory of the rank unless an `out` says otherwise. None
has a gradient, and each refuses inputs that want one. Inside torch.compile they become the ops of
tokenweave/torch_ops.py.

Errors common to all: ConfigError for a bad argument (this rank only, before it takes part),
MismatchError, PeerLostError, CommTimeoutError as tokenfabric.errors says.

On GPUs a call returns when its kernel is enqueued on the current stream, and may be captured into a
CUDA graph. What goes wrong there fills the results with NaN and is raised by the next call. Tensors
of other libraries on the same device (CuPy, NumPy) are taken through DLPack.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from tokenfabric import native
from tokenfabric.errors import ConfigError
from tokenweave import checks, host_moves, torch_ops
from tokenweave.arrays import from_dlpack
from tokenweave.cuda import moves as cuda_moves
from tokenweave.forms import NormKind, Numerics
from tokenweave.fused_call import FusedCall, Key, check_residual_dtype, prepare_fused
from tokenweave.native_call import address
from tokenweave.plan import Algorithm, ResidualLayout
from tokenweave.plan_on_world import flat_rows, residual_shape
from tokenweave.prepare import prepare_reduction
from tokenweave.shared_output import SharedOutput

if TYPE_CHECKING:
    from tokenfabric.world import World


def allreduce_rmsnorm(
    x_partial: torch.Tensor,
    residual: torch.Tensor | None,
    weight: torch.Tensor,
    *,
    world: "World",
    eps: float = 1e-6,
    bias: torch.Tensor | None = None,
    weight_offset: float = 0.0,
    residual_layout: ResidualLayout = "replicated",
    algorithm: Algorithm = "auto",
    out: torch.Tensor | SharedOutput | None = None,
    residual_out: torch.Tensor | None = None,
    norm: NormKind = "rms_norm",
    norm_bias: torch.Tensor | None = None,
    numerics: Numerics = "fused",
    residual_dtype: torch.dtype | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """All-reduce, add bias and residual, normalize: one kernel (arXiv 2505.11329, section 3).

        s = round(sum over ranks of x_partial) + bias + residual
        normed = s * rsqrt(mean(s ** 2) + eps) * (weight_offset + weight);   residual = s

    The sum over ranks is taken in fp32 in rank order and rounded once to the activation dtype;
    everything after it is fp32 with one final rounding. All ranks hold the same bits, whatever the
    algorithm. Batch-invariant: a row's bits depend on that row alone, not on the other rows, their
    number, the algorithm or the blocks it makes.

    Args:
        x_partial: [..., hidden] bfloat16, float16 or float32, contiguous: this rank's partial sum.
            Read without a copy if it lies in a SymmetricBuffer of the world or in
            `partial_sum_buffer`.
        residual: like x_partial or float32, equal on all ranks; or, row_sharded, [rows of this
            rank, hidden] as `tokenweave.plan.split_rows` deals them; or None for none. A float32
            residual keeps the sum unrounded.
        weight: [hidden], activation dtype or float32, equal on all ranks.
        eps: added to the mean square.
        bias: [hidden], activation dtype, added once (not per rank).
        weight_offset: 1.0 for Gemma's (1 + weight).
        residual_layout: "replicated": every rank gets all rows of the new residual. "row_sharded":
            it gets only its own, which then never travel between ranks.
        algorithm: "auto" lets `plan_reduction` choose; "one_shot" every rank reduces every row;
            "two_shot" each rank reduces its rows and the results are exchanged. Ranks on several
            hosts take "auto" only.
        out, residual_out: where the results go, contiguous, same shape and dtype; residual_out may
            be `residual` itself (in place). Allocated when None. out may be a SharedOutput (needs a
            row_sharded residual): normed is then one tensor that all ranks have mapped, read-only,
            until the call after the next one that is given the same SharedOutput.
        norm: "rms_norm", or "layer_norm": (s - mean(s)) * rsqrt(var(s) + eps) * (weight_offset +
            weight) + norm_bias.
        norm_bias: [hidden], weight's dtype; of a layer_norm; or None for none.
        numerics: "fused" as above; "drop_in" rounds to the activation dtype where separate
            operations do: after each addition, and in an rms_norm without weight_offset before the
            weight, as Hugging Face's LlamaRMSNorm. The mean is summed in another order than
            torch's, so that results may differ by one rounding. Needs weight and residual in the
            activation dtype.
        residual_dtype: of the new residual where residual is None; default: the activation dtype.

    Returns:
        (normed, residual): normed [..., hidden] on all ranks; residual as residual_layout says.

    Example: world 2, rows 4, row_sharded: rank 0 reduces rows 0-1 and keeps their residual, rank 1
    rows 2-3; both return all 4 normed rows.
    """
    if torch.compiler.is_compiling() and not isinstance(out, SharedOutput):
        return torch_ops.traced_allreduce_rmsnorm(
            x_partial, residual, weight, bias, eps, weight_offset, residual_layout, algorithm,
            world.group_name, norm, norm_bias, numerics, residual_dtype, out, residual_out,
        )  # fmt: skip
    if not isinstance(x_partial, torch.Tensor):
        x_partial, residual, weight, bias, norm_bias, residual_out = map(
            from_dlpack, (x_partial, residual, weight, bias, norm_bias, residual_out)
        )
        out = out if isinstance(out, SharedOutput) else from_dlpack(out)
    if residual_dtype is not None:
        check_residual_dtype(residual, residual_dtype)
    kept_dtype = residual_dtype if residual is None else residual.dtype
    key: Key = (x_partial.shape, x_partial.dtype, weight.dtype, residual_layout, algorithm,
                isinstance(out, SharedOutput), norm, numerics, kept_dtype, None)  # fmt: skip
    call: FusedCall = world.prepared.get(key) or prepare_fused(world, key, x_partial, weight)
    call.check(key, x_partial, residual, weight, bias, norm_bias)
    shape, dtype = key[0], key[1]
    if isinstance(out, SharedOutput):
        normed_address, normed = out.slot(shape, dtype)
    else:
        normed = checks.output("out", out, shape, dtype, call.device)
        normed_address = address(normed)
    residual_out = checks.output(
        "residual_out", residual_out, call.rows_shape, call.residual_dtype, call.device
    )
    call.reduce(
        world, x_partial, residual, bias, weight, normed_address, residual_out, eps, weight_offset,
        norm_bias,
    )  # fmt: skip
    if isinstance(out, SharedOutput):
        out.advance()
    return normed, residual_out


def all_reduce(
    x: torch.Tensor,
    *,
    world: "World",
    out: torch.Tensor | None = None,
    algorithm: Algorithm = "auto",
) -> torch.Tensor:
    """Return sum over ranks of x, in fp32 in rank order, rounded once.

    Args:
        x: any shape, bfloat16, float16 or float32, contiguous.
        world: the ranks to sum over.
        out: where the sum goes; may be x.
        algorithm: see `allreduce_rmsnorm`.
    """
    if torch.compiler.is_compiling() and out is None:
        return torch.ops.tokenweave.all_reduce(x, algorithm, world.group_name)
    x, out = from_dlpack(x), from_dlpack(out)
    checks.tensor("x", x, world.device)
    checks.no_gradient(x=x)
    num_rows, row_elems = flat_rows(x)
    out = checks.output("out", out, x.shape, x.dtype, world.device)
    reduction = prepare_reduction(
        world,
        native.weave.OP_ALL_REDUCE,
        num_tokens=num_rows,
        hidden=row_elems,
        dtype=x.dtype,
        algorithm=algorithm,
        has_residual=False,
    )
    reduction(world, x, None, None, None, address(out), None, 0.0, 0.0)
    return out


def reduce_scatter(
    x: torch.Tensor, *, world: "World", out: torch.Tensor | None = None
) -> torch.Tensor:
    """Return this rank's rows of the sum over ranks of x.

    Args:
        x: [..., hidden] bfloat16, float16 or float32, contiguous.
        world: the ranks to sum over.
        out: [rows of this rank, hidden] as `tokenweave.plan.split_rows` deals them.
    """
    if torch.compiler.is_compiling() and out is None:
        return torch.ops.tokenweave.reduce_scatter(x, world.group_name)
    x, out = from_dlpack(x), from_dlpack(out)
    num_tokens, hidden = checks.activation("x", x, world.device)
    checks.no_gradient(x=x)
    shape = residual_shape(x, world, num_tokens, hidden, "row_sharded")
    out = checks.output("out", out, shape, x.dtype, world.device)
    reduction = prepare_reduction(
        world,
        native.weave.OP_REDUCE_SCATTER,
        num_tokens=num_tokens,
        hidden=hidden,
        dtype=x.dtype,
        output="own_rows",
        has_residual=False,
    )
    reduction(world, x, None, None, None, address(out), None, 0.0, 0.0)
    return out


def all_gather(
    x: torch.Tensor,
    *,
    world: "World",
    dim: int = 0,
    sizes: Sequence[int] | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Concatenate the ranks' tensors along `dim`, in rank order.

    Args:
        x: this rank's part, any dtype, contiguous; the other dimensions are equal on all ranks.
        world: the ranks whose parts are joined.
        dim: 0, or -1 for the last.
        sizes: extent along `dim` on every rank; None when all are equal. Parts may be empty.
        out: where the result goes.
    """
    if torch.compiler.is_compiling() and out is None:
        return torch.ops.tokenweave.all_gather(
            x, dim, None if sizes is None else list(sizes), world.group_name
        )
    x, out = from_dlpack(x), from_dlpack(out)
    checks.any_dtype("x", x, world.device)
    checks.no_gradient(x=x)
    if x.dim() == 0 or dim not in (0, -1, x.dim() - 1):
        raise ConfigError(
            f"all_gather works along the first or last dimension, got {dim} of {x.dim()}"
        )
    extents = tuple(sizes) if sizes is not None else (x.shape[dim],) * world.size
    if len(extents) != world.size or extents[world.rank] != x.shape[dim]:
        raise ConfigError(
            f"sizes {extents} do not fit: a world of {world.size}, this rank {world.rank} brings "
            f"{x.shape[dim]} along dim {dim}"
        )
    shape = list(x.shape)
    shape[dim] = sum(extents)
    out = checks.output("out", out, torch.Size(shape), x.dtype, world.device)
    rows = 1 if dim == 0 else math.prod(x.shape[:-1])
    unit = x.dtype.itemsize * (math.prod(x.shape[1:]) if dim == 0 else 1)
    column_bytes = [extent * unit for extent in extents]
    if world.cuda is not None:
        cuda_moves.all_gather(world, x, out, rows, column_bytes)
    elif world.hosts is None:
        native.weave.all_gather(world.comm, x.data_ptr(), out.data_ptr(), rows, column_bytes)
    else:
        host_moves.all_gather(world, x, out, rows, column_bytes)
    return out


def broadcast(x: torch.Tensor, *, world: "World", src: int = 0) -> torch.Tensor:
    """Overwrite x on every rank of `world` with rank `src`'s and return it.

    Args:
        x: any dtype and shape, contiguous.
        world: the ranks that take part.
        src: the rank whose values are kept.
    """
    if torch.compiler.is_compiling():
        torch.ops.tokenweave.broadcast_(x, src, world.group_name)
        return x
    x = from_dlpack(x)
    checks.any_dtype("x", x, world.device)
    checks.no_gradient(x=x)
    if world.cuda is not None:
        cuda_moves.broadcast(world, x, src)
    elif world.hosts is None:
        native.weave.broadcast(world.comm, x.data_ptr(), x.numel() * x.dtype.itemsize, src)
    else:
        host_moves.broadcast(world, x, src)
    return x


def partial_sum_buffer(
    world: "World", num_tokens: int, hidden: int, dtype: torch.dtype
) -> torch.Tensor | None:
    """Return shared memory into which a block's last GEMM can write its partial sum.

    The next `allreduce_rmsnorm` or `all_reduce` of the world that gets exactly this tensor reads it
    without a copy. Valid for one use: ask again for every reduction, and do not keep results in it.
    Not collective, but a partial sum must lie in such memory on all ranks or on none.

    Args:
        world: whose next reduction reads it.
        num_tokens, hidden, dtype: what the partial sum is.

    Returns:
        [num_tokens, hidden], or None when it does not fit or the world has one rank.
    """
    comm = world.host_comm
    count = num_tokens * hidden
    if world.cuda is not None:
        return world.cuda.partial_sums((num_tokens, hidden), dtype)
    if comm.size == 1 or count == 0 or count * dtype.itemsize > comm.partial_bytes:
        return None
    workspace = comm.workspace(comm.rank)
    flat = torch.frombuffer(workspace, dtype=dtype, count=count, offset=comm.partial_offset())
    return flat.view(num_tokens, hidden)
