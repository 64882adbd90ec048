"""The public operations on a world of GPUs: one rank in this process, several as processes."""

import pytest
import torch
import torch.distributed as dist

import tokenfabric
import tokenweave
from tests.gpu.ranks import run_on_one_gpu
from tokenfabric.errors import CommTimeoutError, ConfigError, TopologyError
from tokenfabric.testing.tolerance import assert_close
from tokenfabric.world import World
from tokenweave.plan import split_rows
from tokenweave.reference import allreduce_rmsnorm_reference

pytestmark = pytest.mark.gpu
HIDDEN = 1024


def partials_of(size: int, rows: int, seed: int = 0) -> list[torch.Tensor]:
    """Return the partial sums of every rank, the same on every rank; on the CPU."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(rows, HIDDEN, generator=generator).bfloat16() for _ in range(size)]


def check_fused(
    found: torch.Tensor, partials: list[torch.Tensor], weight: torch.Tensor, what: str
) -> None:
    """Compare normed rows with fp64, allowing what torch needs in the same dtype, twice."""
    exact, _ = allreduce_rmsnorm_reference(partials, None, weight.cpu(), eps=1e-6)
    baseline, _ = allreduce_rmsnorm_reference(
        partials, None, weight.cpu(), eps=1e-6, compute_dtype=torch.bfloat16
    )
    assert_close(found.cpu(), exact, baseline, what=what)


def test_world_of_one(device: torch.device) -> None:
    """A single rank runs the same kernels and operators, on its own memory."""
    with tokenfabric.init(device="cuda") as world:
        assert world.device == device
        assert "GPUs" in world.describe()
        x, weight = partials_of(1, 5)[0].to(device), torch.randn(HIDDEN, device=device).bfloat16()
        normed, residual = tokenweave.allreduce_rmsnorm(x, None, weight, world=world)
        check_fused(normed, [x.cpu()], weight, "normed")
        assert torch.equal(residual, x)
        assert torch.equal(tokenweave.all_reduce(x, world=world), x)
        assert torch.equal(tokenweave.reduce_scatter(x, world=world), x)
        assert torch.equal(tokenweave.all_gather(x, world=world), x)
        assert torch.equal(tokenweave.broadcast(x.clone(), world=world), x)
        out = torch.empty_like(x)
        again, _ = tokenweave.allreduce_rmsnorm(x, None, weight, world=world, out=out)
        assert again.data_ptr() == out.data_ptr()
        assert torch.equal(out, normed)


def test_operators_trace_without_breaks(device: torch.device) -> None:
    """torch.compile sees one operator; its fake says the right shapes."""
    with tokenfabric.init(device="cuda") as world:
        weight = torch.ones(HIDDEN, device=device).bfloat16()

        def block(x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
            normed, kept = tokenweave.allreduce_rmsnorm(x, residual, weight, world=world)
            return normed + kept

        compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
        x, residual = (it.to(device) for it in partials_of(2, 7))
        with torch.no_grad():
            assert torch.equal(compiled(x, residual), block(x, residual))


def test_what_is_not_to_be_had_is_refused_by_name(device: torch.device) -> None:
    """Wrong devices, forms of the CPU, gradients."""
    with tokenfabric.init(device="cuda") as world:
        weight = torch.ones(HIDDEN, device=device).bfloat16()
        x = torch.zeros(2, HIDDEN, device=device).bfloat16()
        with pytest.raises(ConfigError, match="x_partial is on cpu"):
            tokenweave.allreduce_rmsnorm(x.cpu(), None, weight, world=world)
        with pytest.raises(ConfigError, match="drop_in"):
            tokenweave.allreduce_rmsnorm(x, None, weight, world=world, numerics="drop_in")
        with pytest.raises(ConfigError, match="requires a gradient"):
            tokenweave.all_reduce(x.float().requires_grad_(), world=world)
    with pytest.raises(ConfigError, match="closed"):
        tokenweave.all_reduce(x, world=world)
    with pytest.raises(TopologyError, match="GPU 99"):
        tokenfabric.init(device="cuda:99")


def test_cupy_arrays_are_taken_through_dlpack(device: torch.device) -> None:
    """No copy, and the results are tensors on the same GPU."""
    cupy = pytest.importorskip("cupy")
    with tokenfabric.init(device="cuda") as world:
        x = cupy.random.standard_normal((4, HIDDEN)).astype(cupy.float16)
        weight = cupy.ones(HIDDEN, dtype=cupy.float16)
        normed, residual = tokenweave.allreduce_rmsnorm(x, None, weight, world=world)
        assert normed.device == device
        assert torch.equal(residual, torch.from_dlpack(x))


def _rank_operations(world: World) -> str:
    device, size, rank = world.device, world.size, world.rank
    weight = torch.linspace(0.5, 2, HIDDEN).bfloat16().to(device)
    for rows in (0, 1, size - 1, size + 1, 33, 600):
        partials = partials_of(size, rows, seed=rows)
        x = partials[rank].to(device)
        residual = torch.zeros_like(x)
        for algorithm in ("auto", "two_shot"):
            normed, kept = tokenweave.allreduce_rmsnorm(
                x, residual, weight, world=world, algorithm=algorithm
            )
            check_fused(normed, partials, weight, f"{rows} rows, {algorithm}")
            summed = sum(it.float() for it in partials).bfloat16()  # in rank order
            assert torch.equal(kept.cpu(), summed)
            assert torch.equal(
                tokenweave.all_reduce(x, world=world, algorithm=algorithm).cpu(), summed
            )
        own = slice(*split_rows(rows, size)[rank])
        assert torch.equal(tokenweave.reduce_scatter(x, world=world).cpu(), summed[own])
        normed, kept = tokenweave.allreduce_rmsnorm(
            x, None, weight, world=world, residual_layout="row_sharded"
        )
        check_fused(normed, partials, weight, f"{rows} rows, row_sharded")
        assert torch.equal(kept.cpu(), summed[own])
        gathered = tokenweave.all_gather(x, world=world)
        assert torch.equal(gathered.cpu(), torch.cat(partials))
        sizes = [HIDDEN - 3 * it for it in range(size)]
        part = x[:, : sizes[rank]].contiguous()
        wide = tokenweave.all_gather(part, world=world, dim=-1, sizes=sizes)
        columns = [it[:, :width] for it, width in zip(partials, sizes, strict=True)]
        assert torch.equal(wide.cpu(), torch.cat(columns, dim=-1))
        assert torch.equal(
            tokenweave.broadcast(x.clone(), world=world, src=size - 1).cpu(), partials[-1]
        )
    assert world.cuda is not None
    return f"{world.cuda.capability.reach}, {world.cuda.capability.is_overlapping}"


@pytest.mark.parametrize("size", [2, 3])
def test_operations_between_processes(device: torch.device, size: int) -> None:
    """Every collective, with tensors in private memory, on ranks that share this GPU."""
    assert set(run_on_one_gpu(_rank_operations, size)) == {"peer, True"}


def _rank_without_copies(world: World) -> None:
    device, size, rank, rows = world.device, world.size, world.rank, 40
    num_bytes = 2 * rows * HIDDEN
    weight = torch.ones(HIDDEN, device=device).bfloat16()
    with tokenfabric.SymmetricBuffer(world, 2 * num_bytes) as buffer:
        x = buffer.tensor((rows, HIDDEN), torch.bfloat16)
        out = buffer.tensor((rows, HIDDEN), torch.bfloat16, offset_bytes=num_bytes)
        for step in range(3):
            partials = partials_of(size, rows, seed=step)
            x.copy_(partials[rank])
            out.fill_(float("nan"))
            tokenweave.allreduce_rmsnorm(
                x, None, weight, world=world, out=out, residual_layout="row_sharded"
            )
            check_fused(out, partials, weight, f"step {step}")
            torch.cuda.synchronize()
            world.barrier()
            for peer in range(size):
                seen = buffer.peer(peer, (rows, HIDDEN), torch.bfloat16)
                assert torch.equal(seen.cpu(), partials[peer])
            world.barrier()
    slot = tokenweave.partial_sum_buffer(world, rows, HIDDEN, torch.bfloat16)
    assert slot is not None
    slot.copy_(partials[rank])
    normed, _ = tokenweave.allreduce_rmsnorm(slot, None, weight, world=world)
    check_fused(normed, partials, weight, "partial_sum_buffer")
    too_large = torch.zeros((9 << 20) // (2 * HIDDEN), HIDDEN, device=device).bfloat16()
    with pytest.raises(ConfigError, match="TOKENFABRIC_CUDA_SLOT_MIB"):
        tokenweave.all_reduce(too_large, world=world)


def test_symmetric_buffers_are_used_where_they_are(device: torch.device) -> None:
    """Partial sums and results in shared memory; peers' parts as tensors; slots have a limit."""
    run_on_one_gpu(_rank_without_copies, 2)


def _rank_graph(world: World) -> None:
    device, rank = world.device, world.rank
    weight = torch.ones(HIDDEN, device=device).bfloat16()
    x = torch.zeros(20, HIDDEN, device=device).bfloat16()
    out, kept = torch.empty_like(x), torch.empty_like(x)

    def call() -> None:
        tokenweave.allreduce_rmsnorm(x, None, weight, world=world, out=out, residual_out=kept)

    call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    for step in range(5):
        partials = partials_of(world.size, 20, seed=step)
        x.copy_(partials[rank])
        out.fill_(float("nan"))
        graph.replay()
        check_fused(out, partials, weight, f"replay {step}")
        call()
        check_fused(out, partials, weight, f"eager after replay {step}")
    assert world.broken is None


def test_graphs_of_several_processes(device: torch.device) -> None:
    """Captured on every rank, replayed together, between eager calls."""
    run_on_one_gpu(_rank_graph, 2)


def _rank_missing(world: World) -> str:
    weight = torch.ones(HIDDEN, device=world.device).bfloat16()
    x = torch.ones(4, HIDDEN, device=world.device).bfloat16()
    tokenweave.all_reduce(x, world=world)
    torch.cuda.synchronize()
    world.barrier()
    if world.rank == 1:
        dist.barrier(world.group)
        return "absent"
    normed, _ = tokenweave.allreduce_rmsnorm(x, None, weight, world=world)
    torch.cuda.synchronize()
    assert normed.isnan().all()
    assert isinstance(world.broken, CommTimeoutError)
    with pytest.raises(CommTimeoutError) as raised:
        tokenweave.allreduce_rmsnorm(x, None, weight, world=world)
    assert raised.value.peer_rank == 1
    dist.barrier(world.group)
    return "raised"


def test_rank_that_does_not_call_is_an_error_for_the_others(device: torch.device) -> None:
    """Not a hang, and not numbers."""
    assert run_on_one_gpu(_rank_missing, 2, comm_timeout_s=3.0) == ["raised", "absent"]


def _rank_sub_groups(world: World) -> None:
    outer = [0, world.size - 1]
    group = dist.new_group(outer)
    x = torch.full((9, HIDDEN), world.rank + 1, device=world.device, dtype=torch.bfloat16)
    if world.rank in outer:
        assert isinstance(group, dist.ProcessGroup)
        with World.from_group(group, timeout_s=20.0, device=world.device) as pair:
            for _ in range(3):
                found = tokenweave.all_reduce(x, world=pair)
                assert torch.equal(found, torch.full_like(x, world.size + 1))
                # Words of the two groups do not meet.
                whole = tokenweave.all_reduce(x, world=world)
                assert torch.equal(whole, torch.full_like(x, sum(range(1, world.size + 1))))
    else:
        for _ in range(3):
            tokenweave.all_reduce(x, world=world)
    dist.barrier(world.group)


def test_sub_groups_have_memory_of_their_own(device: torch.device) -> None:
    """A world of some ranks beside that of all, used in turns."""
    run_on_one_gpu(_rank_sub_groups, 3)


def _rank_streams(world: World) -> None:
    x = torch.ones(40, HIDDEN, device=world.device).bfloat16()
    expected = torch.full_like(x, world.size)
    streams = [torch.cuda.Stream(), torch.cuda.Stream()]
    torch.cuda.synchronize()
    found = []
    for step in range(6):
        with torch.cuda.stream(streams[step % 2]):
            found.append(tokenweave.all_reduce(x, world=world, algorithm="two_shot"))
    torch.cuda.synchronize()
    assert all(torch.equal(it, expected) for it in found)
    assert world.broken is None


def test_streams_take_turns_on_one_world(device: torch.device) -> None:
    """A call on another stream waits for the one before: they share signals and slots."""
    run_on_one_gpu(_rank_streams, 2)


def _rank_other_slots(world: World) -> None:
    raise AssertionError("the world must not come to be")


def test_sharing_a_gpu_unasked_is_refused(device: torch.device) -> None:
    """Two ranks on one GPU without torch's permission: the same clear refusal on both."""
    with pytest.raises(Exception, match="have the same GPU"):
        run_on_one_gpu(
            _rank_other_slots, 2, environment={"TORCH_SYMM_MEM_ALLOW_OVERLAPPING_DEVICES": "0"}
        )
