"""The fused reduction over several hosts: right, the same bits on all ranks, equal to its plan."""

import os
import time
from dataclasses import replace
from functools import reduce

import pytest
import torch
import torch.distributed as dist

from tests.dist import fused_cases
from tests.dist.fused_cases import Case, Inputs
from tests.dist.host_worlds import Hosts
from tests.dist.test_ops_fused import call, digest
from tokenfabric.rail import Rail
from tokenfabric.testing.spawn import run_ranks
from tokenfabric.testing.tolerance import assert_close, assert_same_bits, ulp_distance
from tokenfabric.world import World
from tokenweave.host_plan import plan_hierarchical
from tokenweave.plan import split_rows

LAYOUTS = [Hosts(2, 1), Hosts(2, 2), Hosts(3, 1)]
# A host in the middle whose ranks share memory, and one whose 16-bit partial sums are too many.
WIDE_LAYOUTS = [Hosts(3, 2), Hosts(2, 3)]


def cases(hosts: Hosts) -> list[Case]:
    """Sizes around the number of ranks, every option, and sizes that take both exchanges.

    Both dtypes and what travels: with two ranks a host, bf16 partial sums and fp32 sums. fp32 is
    left out on many ranks, where it adds nothing to bf16.
    """
    found = []
    for dtype in ("bf16", "fp32") if hosts in LAYOUTS else ("bf16",):
        for index, tokens in enumerate(sorted({0, 1, 3, hosts.size - 1, hosts.size + 1, 37})):
            for residual in ("none", "replicated", "row_sharded"):
                found.append(
                    Case(
                        tokens=tokens,
                        hidden=(72, 7, 1000)[index % 3],
                        dtype=dtype,
                        residual=residual,
                        has_bias=index % 2 == 0,
                        is_gemma=index % 4 < 2,
                        is_in_place=index % 3 == 1,
                        has_fp32_weight=index % 4 == 3,
                    )
                )
        large = Case(tokens=1031, hidden=576, dtype=dtype, has_bias=True)
        found += [large, replace(large, residual="row_sharded"), replace(large, is_in_place=True)]
    return found


def sums_in_order(case: Case, inputs: Inputs, hosts: Hosts) -> torch.Tensor:
    """Return the residual's bits: fp32 in rank order where partial sums travel, else inside each
    host and then host by host; rounded once.
    """
    partials = [partial.float() for partial in inputs.partials]
    step = hosts.local_size if hosts.local_size * case.torch_dtype.itemsize > 4 else 1
    of_host = (partials[first : first + step] for first in range(0, hosts.size, step))
    total = reduce(torch.add, (reduce(torch.add, ranks) for ranks in of_host))
    total = total.to(case.torch_dtype).float()
    for extra in (inputs.bias, inputs.residual):
        if extra is not None:
            total = total + extra.float()
    return total.to(case.torch_dtype)


def _rank_fused(rank: int, world_size: int, hosts: Hosts) -> list[str]:
    digests = []
    with hosts.world(rank) as world:
        for number, case in enumerate(cases(hosts)):
            inputs = fused_cases.make_inputs(case, world_size, number)
            if number % 7 == rank:
                time.sleep(0.002)  # one rank is late
            normed, residual = call(world, case, inputs)
            reference, exact_sum = fused_cases.fp64_reference(case, inputs)
            baseline, baseline_sum = fused_cases.same_dtype_baseline(case, inputs)
            contract = sums_in_order(case, inputs, hosts)
            digests.append(digest(normed))
            if case.residual == "row_sharded":
                contract = contract[slice(*split_rows(case.tokens, world_size)[rank])]
            else:
                digests.append(digest(residual))
            assert_same_bits(residual, contract, what=f"{case}: residual")
            if number % world_size == rank:
                assert_close(normed, reference, baseline, what=f"{case}: normed")
                if case.residual != "row_sharded":
                    assert_close(residual, exact_sum, baseline_sum, what=f"{case}: residual")
    return digests


@pytest.mark.parametrize("hosts", LAYOUTS + WIDE_LAYOUTS, ids=str)
def test_fused_reduction_is_right_and_equal_on_all_ranks(hosts: Hosts) -> None:
    """Within the tolerance policy, with the bits of the documented order, the same everywhere."""
    digests = run_ranks(_rank_fused, hosts.size, hosts, with_world=False)
    assert len(digests[0]) > len(cases(hosts))
    for rank in range(1, hosts.size):
        assert digests[rank] == digests[0]


def _rank_flat_order(rank: int, world_size: int, hosts: Hosts) -> list[tuple[int, int]]:
    found = []
    for tokens in (40, 1400):  # one message and two
        case = Case(tokens=tokens, hidden=512, dtype="bf16", residual="none")
        inputs = fused_cases.make_inputs(case, world_size, 3)
        with hosts.world(rank) as world:
            normed, residual = call(world, case, inputs)
        os.environ["TOKENFABRIC_HOST_ID"] = "one host"
        assert dist.group.WORLD is not None
        with World.from_group(dist.group.WORLD, timeout_s=20, num_threads=1) as flat:
            assert flat.hosts is None
            flat_normed, flat_residual = call(flat, case, inputs)
        steps = ulp_distance(residual, flat_residual)
        same = steps.sum(-1) == 0
        found.append((int(steps.max()), int(ulp_distance(normed, flat_normed)[same].max())))
    return found


@pytest.mark.parametrize(("hosts", "most_steps"), [(Hosts(2, 2), 0), (Hosts(2, 3), 1)], ids=str)
def test_several_hosts_differ_from_one_by_at_most_one_step(hosts: Hosts, most_steps: int) -> None:
    """Partial sums that travel are added in the order of one host: the same bits. Another order of
    fp32 additions moves the rounded sum by one ulp, and mostly not at all.
    """
    for found in run_ranks(_rank_flat_order, hosts.size, hosts, with_world=False):
        for sums, normed in found:
            assert sums <= most_steps
            assert normed <= most_steps


def _rank_bytes(rank: int, world_size: int, hosts: Hosts) -> None:
    sent = 0
    original = Rail.exchange

    def counting(self: Rail, out: torch.Tensor, own: torch.Tensor, *rows: object) -> dist.Work:
        nonlocal sent
        sent += own.nbytes
        return original(self, out, own, *rows)  # type: ignore[arg-type]

    Rail.exchange = counting  # type: ignore[method-assign]
    with hosts.world(rank) as world:
        travels = set()
        for case in cases(hosts):
            plan = plan_hierarchical(
                num_tokens=case.tokens,
                hidden=case.hidden,
                element_size=case.torch_dtype.itemsize,
                num_hosts=hosts.num_hosts,
                local_size=hosts.local_size,
                residual_layout="row_sharded" if case.residual == "row_sharded" else "replicated",
            )
            sent = 0
            call(world, case, fused_cases.make_inputs(case, world_size, 0))
            assert sent == plan.bytes_sent(rank), f"{case}: {plan}"
            travels.add((plan.travels, plan.exchange))
        if hosts == Hosts(2, 2):
            assert len(travels) == 4, "partial sums and sums, once and twice"


@pytest.mark.parametrize("hosts", LAYOUTS, ids=str)
def test_what_is_sent_is_what_the_plan_counts(hosts: Hosts) -> None:
    """Bytes handed to the process group between hosts, by rank and case."""
    run_ranks(_rank_bytes, hosts.size, hosts, with_world=False)
