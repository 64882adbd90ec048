"""Launches as ranks make them: on streams of their own, in graphs, and with a rank that is missing
(rung L4, one process).
"""

import pytest
import torch

from tests.gpu.groups import Ranks
from tests.gpu.problems import make_problem, run_and_check
from tokenfabric.errors import CommTimeoutError, MismatchError
from tokenweave.cuda.virtual import VirtualCall, VirtualRanks
from tokenweave.plan import split_rows
from tokenweave.reference import allreduce_rmsnorm_reference

pytestmark = pytest.mark.gpu
ROWS, HIDDEN = 12, 1024


def tensors(size: int, device: torch.device, rows: int = ROWS) -> dict[str, list[torch.Tensor]]:
    """Return partial sums, poisoned results and residuals of every rank."""
    generator = torch.Generator().manual_seed(size)
    nan = float("nan")
    own = [stop - start for start, stop in split_rows(rows, size)]
    return {
        "partials": [
            torch.randn(rows, HIDDEN, generator=generator).bfloat16().to(device)
            for _ in range(size)
        ],
        "out": [torch.full((rows, HIDDEN), nan, device=device).bfloat16() for _ in range(size)],
        "residual": [torch.full((n, HIDDEN), nan, device=device).bfloat16() for n in own],
    }


def expected(partials: list[torch.Tensor], weight: torch.Tensor) -> torch.Tensor:
    """Return the normed rows in fp64."""
    cpu = [it.cpu() for it in partials]
    return allreduce_rmsnorm_reference(cpu, None, weight.cpu(), eps=1e-6)[0]


def is_close(found: torch.Tensor, wanted: torch.Tensor) -> bool:
    """Whether two roundings of bf16 explain the difference: of the sum, and of the result."""
    return torch.allclose(found.cpu().double(), wanted, rtol=2**-7, atol=2**-7)


def warm_up(size: int, device: torch.device) -> None:
    """Load the kernels: loading one may wait for those that run, and these wait for each other."""
    torch.cuda._sleep(1)
    call = VirtualCall(rows=4, hidden=HIDDEN, is_residual_sharded=True)
    run_and_check(VirtualRanks(size, device), call, make_problem(call, size), times=1)


@pytest.mark.parametrize("size", [2, 4])
def test_ranks_on_streams_of_their_own(device: torch.device, size: int) -> None:
    """Separate launches meet through their signal words, again and again."""
    warm_up(size, device)
    ranks = Ranks(size, device, timeout_s=20.0)
    streams = [torch.cuda.Stream(device) for _ in range(size)]
    weight = torch.randn(HIDDEN, device=device).bfloat16()
    it = tensors(size, device)
    torch.cuda.synchronize(device)
    for _ in range(5):
        for rank, stream in enumerate(streams):
            ranks.launch(
                rank, it["partials"], it["out"], it["residual"][rank], weight, stream=stream
            )
    torch.cuda.synchronize(device)
    for rank in range(size):
        assert ranks.error(rank) is None
        assert is_close(it["out"][rank], expected(it["partials"], weight))
        assert torch.equal(it["out"][rank], it["out"][0])


def test_missing_rank_is_named_and_nothing_looks_valid(device: torch.device) -> None:
    """The wait ends at its deadline; results are NaN, the error names the peer, and stays."""
    warm_up(2, device)
    ranks = Ranks(2, device, timeout_s=0.2)
    weight = torch.ones(HIDDEN, device=device).bfloat16()
    it = tensors(2, device)
    it["out"][0].zero_()
    ranks.launch(0, it["partials"], it["out"], it["residual"][0], weight)
    torch.cuda.synchronize(device)
    error = ranks.error(0)
    assert isinstance(error, CommTimeoutError)
    assert (error.rank, error.peer_rank) == (0, 1)
    assert it["out"][0].isnan().all()
    with pytest.raises(CommTimeoutError, match="rank 1"):
        ranks.launch(0, it["partials"], it["out"], it["residual"][0], weight)
    # The rank that comes late must not compute with what is no longer there.
    it["out"][1].zero_()
    ranks.launch(1, it["partials"], it["out"], it["residual"][1], weight)
    torch.cuda.synchronize(device)
    assert it["out"][1].isnan().all()
    assert ranks.error(1) is not None


def test_late_rank_within_the_deadline_is_waited_for(device: torch.device) -> None:
    """A peer that is busy elsewhere delays the result and nothing else."""
    warm_up(2, device)
    ranks = Ranks(2, device, timeout_s=20.0)
    streams = [torch.cuda.Stream(device) for _ in range(2)]
    weight = torch.randn(HIDDEN, device=device).bfloat16()
    it = tensors(2, device)
    torch.cuda.synchronize(device)
    ranks.launch(0, it["partials"], it["out"], it["residual"][0], weight, stream=streams[0])
    with torch.cuda.stream(streams[1]):
        torch.cuda._sleep(200_000_000)
    ranks.launch(1, it["partials"], it["out"], it["residual"][1], weight, stream=streams[1])
    torch.cuda.synchronize(device)
    assert ranks.error(0) is None
    assert is_close(it["out"][0], expected(it["partials"], weight))


def test_different_calls_are_noticed_where_they_are_compared(device: torch.device) -> None:
    """With fingerprints, ranks that disagree on eps both say so."""
    warm_up(2, device)
    ranks = Ranks(2, device, timeout_s=20.0, checks_calls=True)
    streams = [torch.cuda.Stream(device) for _ in range(2)]
    weight = torch.ones(HIDDEN, device=device).bfloat16()
    it = tensors(2, device)
    torch.cuda.synchronize(device)
    for rank, stream in enumerate(streams):
        ranks.launch(
            rank, it["partials"], it["out"], it["residual"][rank], weight,
            eps=1e-6 * (rank + 1), stream=stream,
        )  # fmt: skip
    torch.cuda.synchronize(device)
    errors = [ranks.error(rank) for rank in range(2)]
    assert all(isinstance(error, CommTimeoutError | MismatchError) for error in errors)
    assert any(isinstance(error, MismatchError) for error in errors)
    assert it["out"][0].isnan().all()


def test_graph_is_replayed_with_new_values(device: torch.device) -> None:
    """Epochs advance on the device: each replay waits anew, and may alternate with eager calls."""
    ranks = VirtualRanks(4, device)
    call = VirtualCall(rows=ROWS, hidden=HIDDEN)
    problem = make_problem(call, 4)
    run_and_check(ranks, call, problem, times=1)
    reduction = ranks.prepare(call)
    partials = [it.to(device) for it in problem.partials]
    assert problem.weight is not None
    launch = reduction.launcher(partials, None, problem.weight.to(device))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        launch()
        launch()
    for step in range(20):
        for tensor in partials:
            tensor.copy_(torch.randn(ROWS, HIDDEN, device=device) * (step + 1))
        for out in reduction.results.normed:
            out.fill_(float("nan"))
        graph.replay()
        torch.cuda.synchronize(device)
        ranks.group.check("replay")
        wanted = expected(partials, problem.weight)
        assert is_close(reduction.results.normed[3], wanted)
        if step % 5 == 0:
            run_and_check(ranks, call, problem, times=1)


def test_two_graphs_alternate_on_one_channel(device: torch.device) -> None:
    """One-shot and two-shot, of other grids, captured apart and replayed in any order."""
    ranks = VirtualRanks(2, device)
    graphs = []
    weight = torch.ones(HIDDEN, device=device).bfloat16()
    for form, blocks in (("one_shot", 2), ("two_shot", 5)):
        call = VirtualCall(rows=ROWS, hidden=HIDDEN, form=form, num_blocks=blocks)  # type: ignore[arg-type]
        partials = [torch.randn(ROWS, HIDDEN, device=device).bfloat16() for _ in range(2)]
        reduction = ranks.prepare(call)
        reduction.run(partials, None, weight)
        graph = torch.cuda.CUDAGraph()
        launch = reduction.launcher(partials, None, weight)
        with torch.cuda.graph(graph):
            launch()
        graphs.append((graph, partials, reduction.results))
    for index in (0, 1, 1, 0, 0, 1, 0):
        graph, partials, results = graphs[index]
        results.normed[1].fill_(float("nan"))
        graph.replay()
        torch.cuda.synchronize(device)
        ranks.group.check("replay")
        assert is_close(results.normed[1], expected(partials, weight))
