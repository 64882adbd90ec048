"""What ranks agree to do with their GPUs: the most that all of them can, with the reason."""

import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenfabric.cuda.capability import CudaCapability, agree


def hopper(rank: int) -> CudaCapability:
    """Return the GPU of a rank on an NVSwitch machine."""
    return CudaCapability(
        host="a", problem="", device=f"gpu-{rank}", name="NVIDIA H100", compute_capability=(9, 0),
        num_sms=132, has_multicast=True,
    )  # fmt: skip


def gang(**of_last: object) -> list[CudaCapability]:
    """Return four ranks, the last of which differs."""
    ranks = [hopper(rank) for rank in range(4)]
    ranks[3] = replace(ranks[3], **of_last)  # type: ignore[arg-type]
    return ranks


def test_equal_ranks_use_all_they_have() -> None:
    """Four GPUs with multicast use it."""
    found = agree(gang())
    assert (found.reach, found.num_devices, found.num_sms) == ("multicast", 4, 132)
    assert not found.is_overlapping
    assert found.gpu == "NVIDIA H100"
    assert agree(gang(name="NVIDIA A10")).gpu == ""


OBSTACLES = [
    ({"problem": "no driver"}, "none", "rank 3 has no usable GPU: no driver"),
    ({"compute_capability": (7, 5)}, "none", r"rank 3 \(NVIDIA H100\) has compute capability 7.5"),
    ({"host": "b"}, "none", "rank 3 is on another host than rank 0"),
    ({"device": "gpu-1"}, "none", "ranks 1 and 3 have the same GPU"),
    ({"unreachable": ("gpu-2",)}, "none", "cannot map the memory of rank 2's GPU"),
    ({"allows_overlap": True}, "none", "rank 0 or rank 3, but not on both"),
    ({"table_digest": "x"}, "none", "rank 3 has another TOKENFABRIC_CUDA_TABLE"),
    ({"slot_bytes": 1}, "none", "rank 0 slots of 0 bytes and rank 3 of 1"),
    ({"has_multicast": False}, "peer", r"rank 3 \(NVIDIA H100\) has no multicast"),
    ({"compute_capability": (8, 0)}, "peer", "compute capability 8.0, multicast needs 9.0"),
    ({"unreachable": ("gpu-9",)}, "multicast", "every GPU takes part"),
    ({"num_sms": 114}, "multicast", "every GPU takes part"),
]


@pytest.mark.parametrize(("of_last", "reach", "reason"), OBSTACLES)
def test_one_rank_holds_all_back(of_last: dict[str, object], reach: str, reason: str) -> None:
    """What one rank lacks nobody uses, and the reason names it."""
    found = agree(gang(**of_last))
    assert found.reach == reach
    assert re.search(reason, found.reason)
    assert found.reason in found.explain()


def test_ranks_may_share_a_gpu_where_all_of_them_allow_it() -> None:
    """Then there is no multicast, and the world says that they take turns."""
    ranks = [replace(hopper(0), allows_overlap=True) for _ in range(2)]
    found = agree(ranks)
    assert (found.reach, found.num_devices, found.is_overlapping) == ("peer", 1, True)


def test_allowing_to_share_switches_multicast_off() -> None:
    """As torch does with that variable, even where nobody shares."""
    found = agree([replace(hopper(rank), allows_overlap=True) for rank in range(2)])
    assert (found.reach, found.is_overlapping) == ("peer", False)


def test_multicast_that_could_not_be_set_up_is_given_up() -> None:
    """What stays is peer access with the new reason."""
    found = agree(gang()).without_multicast("the fabric manager is off")
    assert (found.reach, found.reason, found.num_sms) == (
        "peer",
        "the fabric manager is off",
        132,
    )


CAPABILITIES = st.builds(
    CudaCapability,
    host=st.sampled_from(["a", "a", "a", "b"]),
    problem=st.sampled_from(["", "", "", "broken"]),
    device=st.sampled_from(["0", "1", "2", "3"]),
    compute_capability=st.sampled_from([(7, 5), (8, 0), (9, 0), (10, 0)]),
    num_sms=st.integers(1, 200),
    has_multicast=st.booleans(),
    allows_overlap=st.booleans(),
    unreachable=st.lists(st.sampled_from(["0", "1", "2", "3"]), max_size=1).map(tuple),
)


@given(st.lists(CAPABILITIES, min_size=1, max_size=6))
def test_nobody_is_asked_for_what_it_cannot_do(ranks: list[CudaCapability]) -> None:
    """Whatever the ranks are, the agreed path is one that every single rank has."""
    found = agree(ranks)
    assert found.world_size == len(ranks)
    assert found.reason
    if found.reach == "none":
        return
    assert not any(it.problem for it in ranks)
    assert found.num_sms <= min(it.num_sms for it in ranks)
    assert found.compute_capability >= (8, 0)
    assert not {it.device for it in ranks} & {far for it in ranks for far in it.unreachable}
    if found.is_overlapping:
        assert all(it.allows_overlap for it in ranks)
    if found.reach == "multicast":
        assert all(it.has_multicast and it.compute_capability >= (9, 0) for it in ranks)
        assert len({it.device for it in ranks}) == len(ranks) > 1


@given(st.lists(CAPABILITIES, min_size=1, max_size=6))
def test_agreement_is_symmetric_in_what_it_allows(ranks: list[CudaCapability]) -> None:
    """The order of the ranks changes the words, not the path."""
    assert agree(ranks).reach == agree(ranks[::-1]).reach
