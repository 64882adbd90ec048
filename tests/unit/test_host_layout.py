"""How ranks lie on hosts, and the record that says why a world broke."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenfabric.errors import CommTimeoutError, PeerLostError, TopologyError
from tokenfabric.topology import HostLayout, host_fingerprint, plan_host_layout
from tokenfabric.verdict import Verdict, VerdictKind


@given(st.integers(1, 6), st.integers(1, 6), st.data())
def test_hosts_and_rails_are_a_grid(num_hosts: int, local_size: int, data: st.DataObject) -> None:
    """Each rank is where its host and its rail cross."""
    hosts = [bytes([host]) for host in range(num_hosts) for _ in range(local_size)]
    rank = data.draw(st.integers(0, len(hosts) - 1))
    layout = plan_host_layout(rank, hosts)
    assert layout == HostLayout(rank=rank, num_hosts=num_hosts, local_size=local_size)
    assert layout.size == len(hosts)
    assert set(layout.host_ranks) & set(layout.rail_ranks) == {rank}
    assert layout.host_ranks[layout.local_rank] == rank
    assert layout.rail_ranks[layout.host_idx] == rank
    assert {hosts[peer] for peer in layout.host_ranks} == {hosts[rank]}
    assert len({hosts[peer] for peer in layout.rail_ranks}) == num_hosts


@pytest.mark.parametrize(
    ("hosts", "text"),
    [
        ("aab", r"\[2, 1\].*--nproc-per-node"),
        ("abab", "not consecutive"),
        ("abba", "not consecutive"),
        ("abbccc", r"\[1, 2, 3\]"),
    ],
)
def test_other_layouts_are_refused_with_the_counts(hosts: str, text: str) -> None:
    """Uneven or scattered ranks are no grid."""
    with pytest.raises(TopologyError, match=text):
        plan_host_layout(0, [host.encode() for host in hosts])


def test_a_host_id_takes_the_place_of_the_mount_namespace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal ids are one host, different ones two; an empty one is none."""
    monkeypatch.delenv("TOKENFABRIC_HOST_ID", raising=False)
    found = host_fingerprint()
    monkeypatch.setenv("TOKENFABRIC_HOST_ID", "")
    assert host_fingerprint() == found
    monkeypatch.setenv("TOKENFABRIC_HOST_ID", "a")
    first = host_fingerprint()
    assert first == host_fingerprint()
    monkeypatch.setenv("TOKENFABRIC_HOST_ID", "b")
    assert len({found, first, host_fingerprint()}) == 3


@given(
    st.sampled_from(VerdictKind),
    st.integers(0, 255),
    st.integers(0, 255),
    st.integers(0, 2**32 - 1),
)
def test_a_verdict_survives_the_wire(
    kind: VerdictKind, blamed: int, reporter: int, epoch: int
) -> None:
    """Packed and unpacked it is the same, in a fixed number of bytes."""
    verdict = Verdict(kind=kind, blamed=blamed, reporter=reporter, operation=2, epoch=epoch)
    assert len(verdict.pack()) == Verdict.NUM_BYTES
    assert Verdict.unpack(verdict.pack()) == verdict


@given(st.binary(min_size=Verdict.NUM_BYTES, max_size=Verdict.NUM_BYTES))
def test_what_is_no_verdict_is_refused(data: bytes) -> None:
    """Foreign bytes and unknown kinds are a ValueError, never a verdict."""
    if data[:4] != b"tfv1" or data[4] > max(VerdictKind):
        with pytest.raises(ValueError, match=r"not a verdict|VerdictKind"):
            Verdict.unpack(data)


@pytest.mark.parametrize(
    ("kind", "error", "text"),
    [
        (VerdictKind.PEER_LOST, PeerLostError, "rank 3 is gone"),
        (VerdictKind.TIMEOUT, CommTimeoutError, "rank 3 did not signal within 2 s"),
        (VerdictKind.ABORTED, PeerLostError, "rank 3 left"),
    ],
)
def test_a_verdict_is_raised_as_the_error_of_one_host(
    kind: VerdictKind, error: type[Exception], text: str
) -> None:
    """Names the rank, who found it, who raises, the operation and the epoch."""
    verdict = Verdict(kind=kind, blamed=3, reporter=1, operation=2, epoch=77)
    raised = verdict.error(rank=0, size=4, timeout_s=2.0, operation="all_reduce")
    assert type(raised) is error
    assert (raised.rank, raised.peer_rank, raised.epoch) == (0, 3, 77)
    for part in (text, "all_reduce", "epoch 77", "rank 1 of 4 found", "rank 0", "broken"):
        assert part in str(raised)
