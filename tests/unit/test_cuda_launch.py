"""Launches as far as they go without a GPU: what is refused by name, and what failures say."""

from typing import Any

import pytest
import torch

from tokenfabric import native
from tokenfabric.errors import CommTimeoutError, ConfigError, MismatchError, TokenFabricError
from tokenweave.native_call import NATIVE_DTYPE

BF16, FP32 = NATIVE_DTYPE[torch.bfloat16], NATIVE_DTYPE[torch.float32]
# Never read: what is refused is refused before.
HERE = 1 << 20
# Kept for the groups, which know addresses only.
RECORDS: list[torch.Tensor] = []


def memory(size: int = 2, multicast: int = 0, address: int = HERE) -> Any:
    """Return memory of some ranks."""
    return native.cuda.Memory([address + rank * HERE for rank in range(size)], multicast)


def group(record: torch.Tensor | None = None, **changes: Any) -> Any:
    """Return rank 0 of two."""
    kept = torch.zeros(8, dtype=torch.int32) if record is None else record
    options = {
        "rank": 0, "size": 2, "is_virtual": False, "channel": memory(), "channel_offset": 0,
        "failure_records": [kept.data_ptr()], "timeout_s": 1.0, "checks_calls": False,
        "launcher": None,
    }  # fmt: skip
    made = native.cuda.Group(**options | changes)
    RECORDS.append(kept)
    return made


def run(settled: dict[str, Any] | None = None, **tensors: Any) -> None:
    """Launch two-shot with everything in order, but for the changes."""
    options = {
        "group": group(), "form": native.cuda.TWO_SHOT, "is_multicast": False, "rows": 4,
        "hidden": 64, "dtype": BF16, "weight_dtype": BF16, "residual_dtype": BF16,
        "residual_is_sharded": False, "norm": native.weave.RMS_NORM,
        "quantized_format": native.weave.NOT_QUANTIZED, "group_elements": 0, "scale": 0.0,
        "staging": None, "staging_offset": 0, "staging_block_bytes": 0, "num_blocks": 2,
        "is_baseline": False,
    }  # fmt: skip
    arguments = {
        "x_memory": memory(), "x": 0, "out_memory": memory(), "out": 0, "residual_memory": None,
        "residual": 0, "residual_out_memory": None, "residual_out": 0, "codes_memory": None,
        "codes": 0, "scales_memory": None, "scales": 0, "bias": 0, "weight": HERE, "norm_bias": 0,
        "eps": 1e-6, "weight_offset": 0.0, "stream": 0,
    }  # fmt: skip
    native.cuda.Reduction(**options | (settled or {})).run(**arguments | tensors)


REFUSED = [
    ({"rows": -1}, {}, "rows must not be negative, got -1"),
    ({"hidden": 16385}, {}, "hidden size on a GPU must be 1 to 16384, got 16385"),
    ({"hidden": 0}, {}, "must be 1 to 16384, got 0"),
    ({"num_blocks": 0}, {}, "num_blocks must be 1 to 128, got 0"),
    ({"num_blocks": 129}, {}, "num_blocks must be 1 to 128, got 129"),
    ({"dtype": 2}, {}, "float32, bfloat16 or float16, got bytes"),
    ({"is_multicast": True}, {}, "channel has no multicast address"),
    ({"weight_dtype": NATIVE_DTYPE[torch.float16]}, {}, "weight beside bfloat16"),
    ({"residual_dtype": NATIVE_DTYPE[torch.float16]}, {}, "residual beside bfloat16"),
    ({}, {"x_memory": memory(3)}, "x needs an address for each of 2 ranks, got 3"),
    ({}, {"x_memory": None}, "x needs an address for each of 2 ranks, got 0"),
    ({}, {"out_memory": None}, "without any result"),
    ({}, {"x": 8}, "x must begin at a multiple of 16"),
    ({}, {"weight": HERE + 2}, "weight and norm_bias must begin at a multiple of 16"),
    ({}, {"norm_bias": HERE}, "only a LayerNorm has a bias"),
    ({}, {"residual_memory": memory()}, "residual is private and needs 1 address"),
    ({"form": 1}, {"x_memory": None, "x": HERE, "out_memory": None, "out": HERE}, "staging needs"),
    ({"form": 1, "hidden": 63, "staging": memory()}, {}, "one-shot on a GPU needs"),
    ({"form": 1, "residual_is_sharded": True}, {"residual": HERE}, "cannot be sharded"),
    ({"form": 2}, {"residual": HERE}, "must be sharded"),
    ({"quantized_format": 1}, {}, "place for its codes"),
    ({"quantized_format": 7}, {"codes_memory": memory()}, "fp8 e4m3 or int8, got 7"),
    ({"quantized_format": 1}, {"codes_memory": memory()}, "static scale must be a normal"),
    ({"quantized_format": 1, "group_elements": 32}, {"codes_memory": memory()}, "got 32"),
    ({"quantized_format": 1, "hidden": 63}, {"codes_memory": memory()}, "multiple of 8, got 63"),
    ({"is_baseline": True}, {}, "the baseline is RMSNorm"),
    ({"group": group(channel_offset=64)}, {}, "channel must begin at a multiple of 128"),
    ({"group": group(size=17)}, {}, "1 to 16 ranks, got 17"),
    ({"group": group(rank=2)}, {}, "rank 2 is not in a group of 2"),
    ({"group": group(timeout_s=0.0)}, {}, "every wait needs a deadline"),
]


@pytest.mark.parametrize(("settled", "tensors", "words"), REFUSED, ids=lambda it: str(it)[:40])
def test_wrong_launch_is_refused_by_name(
    settled: dict[str, Any], tensors: dict[str, Any], words: str
) -> None:
    """Before CUDA is asked for anything: also where there is no driver."""
    with pytest.raises(ConfigError, match=words):
        run(settled, **tensors)


def test_float32_is_not_for_the_switch() -> None:
    """It adds 16-bit types only."""
    with_switch = memory(multicast=HERE)
    settled = {
        "is_multicast": True, "dtype": FP32, "weight_dtype": FP32, "residual_dtype": FP32,
        "group": group(channel=with_switch),
    }  # fmt: skip
    with pytest.raises(ConfigError, match="does not add float32"):
        run(settled, x_memory=with_switch, out_memory=with_switch)


def test_no_rows_are_no_launch() -> None:
    """Nothing to do on any rank."""
    run({"rows": 0})


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
def test_right_launch_without_a_gpu_says_what_cuda_said() -> None:
    """It gets as far as CUDA, where kernels were compiled in."""
    words = "launching 2 x 1 blocks of 512 threads failed"
    if not native.cuda.runtime().is_compiled:
        words = "this build has no CUDA kernels, and the group has no launcher"
    with pytest.raises(TokenFabricError, match=words):
        run()


def test_gather_is_checked() -> None:
    """Rows, bytes and the memory of all ranks."""
    arguments = {
        "group": group(), "is_multicast": False, "source_memory": None, "source": HERE,
        "out_memory": memory(), "out": 0, "rows": 2, "row_bytes": 16, "num_blocks": 1, "stream": 0,
    }  # fmt: skip
    for changes, words in (
        ({"rows": -1}, "gather of -1 rows"),
        ({"row_bytes": 0}, "0 bytes"),
        ({"out_memory": memory(3)}, "out needs an address for each of 2 ranks, got 3"),
        ({"source": 0}, "source is private"),
    ):
        with pytest.raises(ConfigError, match=words):
            native.cuda.gather(**arguments | changes)


# kind, rank, peer, block, phase, epoch, expected, seen
FAILURES = [
    (
        (1, 0, 1, 3, 0, 6, 7, 5),
        CommTimeoutError,
        "rank 1 did not signal rank 0 before",
    ),
    ((2, 0, 1, 3, 1, 6, 7, 9), CommTimeoutError, "rank 1 told rank 0 that a wait of its own"),
    ((3, 0, 1, 3, 2, 6, 7, 8), MismatchError, "rank 1 made another call than rank 0"),
]


@pytest.mark.parametrize(("words", "error", "text"), FAILURES)
def test_failure_of_a_kernel_is_raised_by_every_later_call(
    words: tuple[int, ...], error: type[Exception], text: str
) -> None:
    """From the record in pinned memory, with the rank to blame; before anything is launched."""
    record = torch.tensor(words, dtype=torch.int32)
    broken = group(record)
    for _ in range(2):
        with pytest.raises(error, match=text) as raised:
            run({"group": broken})
        assert (raised.value.rank, raised.value.peer_rank, raised.value.epoch) == (0, 1, 6)  # type: ignore[attr-defined]
        assert "block 3" in str(raised.value)
        assert "NaN" in str(raised.value)
    with pytest.raises(error):
        broken.check("test")


def test_sizes_are_those_of_the_kernels() -> None:
    """A block holds 16 rows of 1024 elements, one of 16384; staging has two halves a rank."""
    cuda = native.cuda
    widths = (8, 1024, 1032, 8192, 16384)
    assert [cuda.rows_per_block(it, BF16) for it in widths] == [16, 16, 8, 2, 1]
    assert cuda.channel_bytes() % 128 == 0
    assert cuda.one_shot_block_bytes(1, 8192, BF16, 16) == 2 * 16384
    assert cuda.one_shot_block_bytes(33, 8192, BF16, 16) == 4 * 16384
    assert cuda.staging_bytes(8, 16, 65536) == 2 * 8 * 16 * 65536
    assert cuda.FAILURE_RECORD_BYTES == 32
