"""Two hosts that only a network connects: ranks in network namespaces, over a veth pair."""

import contextlib
import os
import signal
from collections.abc import Callable

import pytest
import torch
import torch.distributed as dist

import tokenfabric
import tokenweave
from tests.dist import fused_cases
from tests.dist.fused_cases import Case
from tests.dist.host_worlds import Hosts
from tests.dist.test_hosts_reduction import sums_in_order
from tests.dist.test_ops_fused import call, digest
from tokenfabric.testing.namespaces import (
    Namespace,
    NamespacesUnavailableError,
    two_namespaces,
)
from tokenfabric.testing.spawn import Raised, spawn_plain
from tokenfabric.testing.tolerance import assert_same_bits

Report = Callable[[str], None]
HOSTS = Hosts(2, 2)
PORT = 29500  # of a namespace of the test's own: nobody else can have it


def _rank_in_namespace(
    rank: int, world_size: int, report: Report, places: tuple[Namespace, Namespace]
) -> None:
    dist.barrier()  # nobody leaves while another still connects
    dist.destroy_process_group()
    place = places[rank // HOSTS.local_size]
    place.enter()
    local_rank = rank % HOSTS.local_size
    os.environ |= {
        "RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "LOCAL_RANK": str(local_rank),
        "LOCAL_WORLD_SIZE": str(HOSTS.local_size),
        "MASTER_ADDR": places[0].address,
        "MASTER_PORT": str(PORT),
        "GLOO_SOCKET_IFNAME": place.interface,
        "TOKENFABRIC_HOST_ID": place.name,
    }
    with tokenfabric.init(timeout_s=20, num_threads=1) as world:
        assert world.layout.num_hosts == 2
        digests = []
        for case in (
            Case(tokens=7, hidden=576, has_bias=True),
            Case(tokens=300, hidden=1024, residual="row_sharded"),
            Case(tokens=1031, hidden=576),
        ):
            inputs = fused_cases.make_inputs(case, world_size, case.tokens)
            normed, residual = call(world, case, inputs)
            digests.append(digest(normed))
            if case.residual == "replicated":
                contract = sums_in_order(case, inputs, HOSTS)
                assert_same_bits(residual, contract, what=str(case))
        numbers = torch.tensor([int(value, 16) % (1 << 62) for value in digests])
        gathered = tokenweave.all_gather(numbers.unsqueeze(0), world=world)
        assert (gathered == numbers).all()
        report("right")
        for _ in range(100_000):
            tokenweave.all_reduce(torch.ones(600, 512), world=world)


def test_two_hosts_work_over_a_network_and_see_each_others_deaths() -> None:
    """The same bits on four ranks; then SIGKILL on one host is told to both ranks of the other."""
    with contextlib.ExitStack() as stack:
        try:
            places = stack.enter_context(two_namespaces())
        except NamespacesUnavailableError as error:
            pytest.skip(str(error))
        ranks = stack.enter_context(
            spawn_plain(_rank_in_namespace, 4, places, timeout_s=60, with_world=False)
        )
        ranks.wait_for("right")
        killed_s = ranks.kill(3)
        ranks.join()
        assert ranks.exit_code(3) == -signal.SIGKILL
        for rank in range(3):
            error = ranks.outcome(rank)
            assert isinstance(error, Raised)
            assert error.exception_type == "PeerLostError", error.traceback
            assert error.attributes["peer_rank"] == 3
            assert error.time_s - killed_s < 2.0
