"""Which GPU a rank takes and what it says of it, as far as that can be told without one."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import tokenfabric
from tests.unit.test_cuda_capability import hopper
from tokenfabric import env, native
from tokenfabric.cuda.capability import CudaCapability
from tokenfabric.cuda.device import (
    CARD_BYTES,
    choose_device,
    device_index,
    pack,
    read_capability,
    unpack,
    why_no_cuda,
)
from tokenfabric.cuda.kernels.launcher import kernel_backend
from tokenfabric.cuda.ranks import Workspace
from tokenfabric.errors import ConfigError, MismatchError, TopologyError

without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")


@without_gpu
def test_module_imports_without_a_driver_and_says_what_is_missing() -> None:
    """The facts are there whether kernels were compiled in or not."""
    runtime = native.cuda.runtime()
    assert runtime.num_devices == 0
    assert runtime.driver_version == 0
    assert runtime.is_compiled == (runtime.runtime_version > 0)
    assert "no NVIDIA driver" in runtime.problem


@without_gpu
def test_world_on_gpus_is_refused_with_the_reason() -> None:
    """The same words as the doctor's, and what to do instead."""
    with pytest.raises(TopologyError, match=r"'cuda:1' is not available: .*Use 'cpu'"):
        tokenfabric.init(device="cuda:1")
    capability, table = read_capability(torch.device("cuda", 0))
    assert capability.problem == why_no_cuda()
    if kernel_backend().way != "none":
        assert capability.problem == native.cuda.runtime().problem
    assert table == b""


@without_gpu
def test_copies_are_refused_where_there_is_no_gpu() -> None:
    """An error of this library, not a crash."""
    with pytest.raises(tokenfabric.TokenFabricError, match="CUDA"):
        native.cuda.copy(128, 256, 16, 0)


@pytest.mark.parametrize("wanted", ["gpu", "cuda:x", "CUDA", "mps:0"])
def test_unknown_device_is_refused(wanted: str) -> None:
    """By name, with the ones that there are."""
    with pytest.raises(ConfigError, match="device must be"):
        choose_device(wanted, 0)


def test_rank_takes_its_own_gpu() -> None:
    """The local rank's, or the only visible one; more ranks than GPUs is an error."""
    assert [device_index(None, rank, 4) for rank in range(4)] == [0, 1, 2, 3]
    assert [device_index(None, rank, 1) for rank in range(4)] == [0, 0, 0, 0]
    assert device_index(2, 0, 4) == 2
    with pytest.raises(TopologyError, match="local rank 4 would take GPU 4, but sees 4"):
        device_index(None, 4, 4)
    with pytest.raises(TopologyError, match="GPU 9"):
        device_index(9, 0, 4)


def test_ranks_share_gpus_where_that_is_meant(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are dealt out in turns."""
    monkeypatch.setenv("TORCH_SYMM_MEM_ALLOW_OVERLAPPING_DEVICES", "1")
    assert [device_index(None, rank, 2) for rank in range(4)] == [0, 1, 0, 1]


@pytest.mark.parametrize("text", ["0", "-1", "1.5", "much", ""])
def test_slots_have_a_positive_size(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """Anything else is named."""
    monkeypatch.setenv("TOKENFABRIC_CUDA_SLOT_MIB", text)
    with pytest.raises(ConfigError, match="TOKENFABRIC_CUDA_SLOT_MIB"):
        env.cuda_slot_bytes()


@given(
    st.builds(
        CudaCapability,
        host=st.text("abcdef0123456789", max_size=32),
        problem=st.text(max_size=300),
        device=st.text(max_size=40),
        name=st.text(max_size=64),
        compute_capability=st.tuples(st.integers(0, 99), st.integers(0, 9)),
        num_sms=st.integers(0, 1000),
        has_multicast=st.booleans(),
        unreachable=st.lists(st.text("0123456789abcdef-", max_size=40), max_size=15).map(tuple),
    )
)
def test_card_survives_the_wire(capability: CudaCapability) -> None:
    """What a rank says of its GPU is what the others read, in bytes of one size."""
    data = pack(capability)
    assert len(data) == CARD_BYTES
    assert unpack(data) == capability


def test_card_that_is_too_long_says_so_instead() -> None:
    """A rank that sees hundreds of foreign GPUs still answers."""
    card = pack(replace(hopper(0), unreachable=tuple(f"GPU-{it:036}" for it in range(500))))
    assert len(card) == CARD_BYTES
    assert "sees 500 GPUs" in unpack(card).problem


@pytest.mark.parametrize(
    "data", [b"", b"\xff" * 9, b"{}", b"[1]", b'{"compute_capability": [9, 0], "unreachable": []}']
)
def test_strange_card_is_another_version(data: bytes) -> None:
    """It is parsed, never run, and never a traceback of json."""
    with pytest.raises(MismatchError, match="another version"):
        unpack(data.ljust(CARD_BYTES))


@given(st.integers(1, 1 << 30), st.integers(0, 1 << 30), st.integers(0, 1 << 40))
def test_workspace_parts_are_aligned_and_apart(channel: int, staging: int, slot: int) -> None:
    """In this order, each at a multiple of 128, none inside another."""
    place = Workspace.lay_out(channel, staging, slot)
    starts = (place.staging, place.partial, place.result, place.residual, place.total)
    assert all(it % 128 == 0 for it in starts)
    sizes = (staging, slot, slot, slot)
    assert place.staging >= channel
    assert all(b - a >= size for a, b, size in zip(starts, starts[1:], sizes, strict=False))
