"""Launches of kernels that are not compiled in: what the native module describes, and what becomes
of it. The GPU is the part that is missing here: its place is taken by something that takes notes.
"""

import struct
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from tests.unit.nvrtc_kernels import compiler, find_nvrtc, short
from tests.unit.test_cuda_launch import BF16, HERE, group, memory, run
from tokenfabric import native
from tokenfabric.cuda.kernels.cupy_kernel import load_kernel
from tokenfabric.cuda.kernels.launcher import KernelLauncher
from tokenfabric.errors import ConfigError, TokenFabricError, TopologyError
from tokenring.merge_native import _operands
from tokenring.partial import Partial

Launch = Any


def described(settled: dict[str, Any] | None = None, **tensors: Any) -> Launch:
    """Return the one launch that a reduction asks its launcher for."""
    asked: list[Launch] = []
    changes = settled or {}
    run(changes | {"group": group(launcher=asked.append, **changes.pop("group", {}))}, **tensors)
    assert len(asked) == 1
    return asked[0]


def test_reduction_is_described_whole() -> None:
    """Kernel, grid, block, stream, and the bytes of its parameters."""
    launch = described({"hidden": 8192, "num_blocks": 3}, stream=77)
    assert short(launch.source.kernel) == "two_shot<Peer, BFloat16, true>"
    assert launch.source.file == "weave/cuda/two_shot.cuh"
    assert (launch.grid, launch.num_threads, launch.shared_bytes) == ((3, 1), 512, 0)
    assert (launch.is_cooperative, launch.stream) == (False, 77)
    assert len(launch.params) == launch.source.params_bytes
    # The first of them: where the channel is on each rank.
    assert struct.unpack_from("<2q", launch.params) == (HERE, 2 * HERE)


def test_one_number_is_one_member() -> None:
    """Another number of rows changes those bytes and no others."""
    same = {"record": torch.zeros(8, dtype=torch.int32)}
    params = [described({"rows": it, "group": dict(same)}).params for it in (4, 5)]
    first, second = (struct.unpack(f"<{len(it) // 4}i", it) for it in params)
    differing = [(a, b) for a, b in zip(first, second, strict=True) if a != b]
    assert differing == [(4, 5)]


KERNELS = [
    ({}, {}, "two_shot<Peer, BFloat16, true>"),
    ({"hidden": 63}, {}, "two_shot<Peer, BFloat16, false>"),
    ({"form": 2, "residual_is_sharded": True}, {"out_memory": None, "out": HERE},
     "two_shot<Peer, BFloat16, true>"),
    ({"form": 1, "staging": memory(), "staging_block_bytes": 1 << 16},
     {"x_memory": None, "x": HERE, "out_memory": None, "out": HERE},
     "one_shot<Peer, BFloat16, true>"),
    ({"dtype": 0, "weight_dtype": 0, "residual_dtype": 0}, {}, "two_shot<Peer, Float32, true>"),
    ({"dtype": 3, "weight_dtype": 3, "residual_dtype": 3}, {}, "two_shot<Peer, Float16, true>"),
    ({"is_multicast": True, "group": {"channel": memory(multicast=HERE)}},
     {"x_memory": memory(multicast=HERE), "out_memory": memory(multicast=HERE)},
     "two_shot<Multicast, BFloat16, true>"),
    ({"is_baseline": True, "residual_is_sharded": True},
     {"residual": HERE, "residual_out": HERE}, "row_per_block"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("settled", "tensors", "kernel"), KERNELS, ids=[f"{i}-{it[-1]}" for i, it in enumerate(KERNELS)]
)
def test_each_kernel_is_asked_for_by_its_name(
    settled: dict[str, Any], tensors: dict[str, Any], kernel: str
) -> None:
    """The name is one of those that the module says there are."""
    launch = described(dict(settled), **tensors)
    assert short(launch.source.kernel) == kernel
    assert launch.source.kernel in {it.kernel for it in native.cuda.kernel_sources()}


def test_virtual_ranks_are_launched_together() -> None:
    """All blocks of all ranks at once, or not at all."""
    records = torch.zeros((2, 8), dtype=torch.int32)
    options = {"is_virtual": True, "failure_records": [it.data_ptr() for it in records]}
    launch = described({"group": options})
    assert (launch.grid, launch.is_cooperative) == ((2, 2), True)


@pytest.mark.parametrize(("row_bytes", "kernel"), [(16, "Peer, true"), (10, "Peer, false")])
def test_gather_is_described(row_bytes: int, kernel: str) -> None:
    """By vectors or byte by byte."""
    asked: list[Launch] = []
    native.cuda.gather(
        group(launcher=asked.append), False, None, HERE, memory(), 0, 2, row_bytes, 4, 5
    )
    assert [short(it.source.kernel) for it in asked] == [f"all_gather_rows<{kernel}>"]
    assert (asked[0].grid, asked[0].stream) == ((4, 1), 5)


@pytest.mark.parametrize(("pieces", "capacity"), [(3, 16), (17, 256)])
def test_merge_is_described(pieces: int, capacity: int) -> None:
    """Two sizes of parameters; products are not fused into sums."""
    asked: list[Launch] = []
    parts = [
        Partial(out=torch.zeros(1, 8, 2, 64), lse=torch.zeros(1, 8, 2), row_start=0, head_start=0)
        for _ in range(pieces)
    ]
    out, lse = torch.empty(1, 8, 2, 64), torch.empty(1, 8, 2)
    native.ring.merge_lse_cuda(
        **_operands(parts, out, lse, None), stream=3, num_blocks=0, launcher=asked.append
    )
    assert len(asked) == 1
    launch = asked[0]
    assert short(launch.source.kernel) == f"merge_lse_kernel<true, {capacity}>"
    assert launch.source.options == ("--fmad=false",)
    assert launch.shared_bytes > 0
    assert (launch.grid, launch.stream) == ((1, 1), 3)
    assert struct.unpack_from("<2q", launch.params) == (out.data_ptr(), lse.data_ptr())


def test_error_of_a_launcher_reaches_the_caller() -> None:
    """As it is, through the native code."""

    def refuse(launch: Launch) -> None:
        raise TokenFabricError("not on this GPU")

    with pytest.raises(TokenFabricError, match="not on this GPU"):
        run({"group": group(launcher=refuse)})
    with pytest.raises(ConfigError, match="rows must not be negative"):
        run({"rows": -1, "group": group(launcher=refuse)})


class Gpu:
    """Takes notes in the place of CuPy."""

    def __init__(self) -> None:
        self.number, self.is_capturing = 0, False
        self.loads: list[tuple[int, str]] = []
        self.launches: list[tuple[int, Launch]] = []

    def load(self, symbol: str, code: bytes) -> Any:
        """Note what was loaded; return what notes launches."""
        assert symbol.encode() in code
        place = self.number
        self.loads.append((place, symbol))
        return lambda launch: self.launches.append((place, launch))

    def launcher(self, folder: Path) -> KernelLauncher:
        """Return a launcher on this GPU, a Hopper."""
        return KernelLauncher(
            compiler(folder), self.load, lambda: (self.number, (9, 0)), lambda: self.is_capturing
        )


@pytest.mark.skipif(find_nvrtc() is None, reason="NVRTC is not installed")
def test_kernel_is_loaded_once_on_each_gpu(tmp_path: Path) -> None:
    """From the disk or the compiler when it is first launched there, never inside a capture."""
    gpu = Gpu()
    launcher = gpu.launcher(tmp_path / "kept")
    gpu.is_capturing = True
    with pytest.raises(ConfigError, match=r"two_shot.* make the call once before"):
        run({"group": group(launcher=launcher)})
    gpu.is_capturing = False
    for number in (0, 0, 1, 0):
        gpu.number = number
        run({"group": group(launcher=launcher)})
    gpu.is_capturing = True
    run({"group": group(launcher=launcher)})
    assert [number for number, _ in gpu.loads] == [0, 1]
    assert [number for number, _ in gpu.launches] == [0, 0, 1, 0, 0]
    assert len(list((tmp_path / "kept").iterdir())) == 1
    again = Gpu()
    run({"group": group(launcher=again.launcher(tmp_path / "kept"))})
    assert again.loads == gpu.loads[:1]


@pytest.mark.skipif(find_nvrtc() is None, reason="NVRTC is not installed")
def test_gpu_and_folder_are_checked_before_ranks_count_on_them(tmp_path: Path) -> None:
    """What a first launch would refuse."""
    gpu, folder = Gpu(), tmp_path / "kept"
    gpu.launcher(folder).check()
    old = KernelLauncher(compiler(folder), gpu.load, lambda: (0, (5, 2)), lambda: False)
    with pytest.raises(TopologyError, match=r"compute capability 5\.2"):
        old.check()
    folder.mkdir(mode=0o777)
    folder.chmod(0o777)
    with pytest.raises(ConfigError, match="nobody else may write"):
        gpu.launcher(folder).check()


class FakeModule:
    """What CuPy's Module does for a launch, with the arguments kept."""

    calls: tuple[Any, ...] = ()

    def load(self, code: bytes) -> None:
        """Refuse what is no code."""
        if code != b"code":
            raise RuntimeError("CUDA_ERROR_INVALID_IMAGE")

    def get_function(self, symbol: str) -> Any:
        """Return the function of a symbol."""

        def call(grid: Any, block: Any, arguments: Any, **options: Any) -> None:
            if grid[0] > 100:
                raise ValueError("exceeds the limit")
            FakeModule.calls += ((symbol, grid, block, arguments, options),)

        return call


@pytest.fixture
def _cupy(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("cupy.cuda.function")
    module.Module = FakeModule  # type: ignore[attr-defined]
    for name in ("cupy", "cupy.cuda"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(FakeModule, "calls", ())


@pytest.mark.usefixtures("_cupy")
def test_cupy_gets_the_parameters_as_one_value() -> None:
    """One array of one element that holds all bytes: CuPy hands on the address of its data."""
    launch = described({"num_blocks": 7}, stream=99)
    load_kernel("symbol", b"code")(launch)
    ((symbol, grid, block, arguments, options),) = FakeModule.calls
    assert (symbol, grid, block) == ("symbol", (7, 1), (512,))
    (params,) = arguments
    assert (params.size, params.tobytes()) == (1, launch.params)
    assert options["stream"].ptr == 99
    assert (options["shared_mem"], options["enable_cooperative_groups"]) == (0, False)


@pytest.mark.usefixtures("_cupy")
def test_what_cuda_refuses_is_said() -> None:
    """With the words of CUDA."""
    with pytest.raises(TokenFabricError, match=r"does not load the code of symbol: CUDA_ERROR_INV"):
        load_kernel("symbol", b"other")
    large = SimpleNamespace(
        params=b"1234",
        grid=(128, 2),
        num_threads=512,
        shared_bytes=0,
        is_cooperative=True,
        stream=0,
    )
    with pytest.raises(
        TokenFabricError, match="launching 128 x 2 blocks of 512 threads failed: exc"
    ):
        load_kernel("symbol", b"code")(large)


def test_dtype_numbers_are_those_of_the_cases() -> None:
    """KERNELS spells float32 and float16 as numbers."""
    assert (native.weave.FLOAT32, native.weave.FLOAT16, native.weave.BFLOAT16) == (0, 3, BF16)
