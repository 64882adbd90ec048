"""Messages by copy engines without GPUs: the driver is csrc/tests/software_driver.cpp.

Everything but the driver is what runs on GPUs: the channel, the native streams, words and watchdog,
in processes. Tensors lie in shared host memory and the host computes, at once: so a receipt's
`wait` also waits for the stream, which on a GPU the host would not.
"""

import ctypes
import subprocess
from collections.abc import Sequence
from pathlib import Path

import torch

from tests.house.tree import ROOT
from tokenfabric import native
from tokenfabric.channel import Receipt
from tokenfabric.channel_cuda import CopyEngineChannel
from tokenfabric.world import World

SOURCE = ROOT / "csrc" / "tests" / "software_driver.cpp"


def compile_driver(folder: Path) -> str:
    """Compile the driver; return its path."""
    path = folder / "software_driver.so"
    command = ["c++", "-std=c++20", "-O1", "-shared", "-fPIC", "-pthread"]
    command += [f"-I{ROOT / 'csrc' / 'include'}", str(SOURCE), "-o", str(path)]
    subprocess.run(command, check=True)
    return str(path)


class SoftwareDriver:
    """The driver's streams, for what a test does to them itself."""

    def __init__(self, path: str) -> None:
        self._calls = ctypes.CDLL(path)
        self._word = ctypes.c_uint32(0)

    def make_stream(self) -> int:
        """Return a stream; it lives as long as the process."""
        stream = ctypes.c_void_p()
        self._calls.cuStreamCreateWithPriority(ctypes.byref(stream), 0, 0)
        assert stream.value is not None
        return stream.value

    def drain(self, stream: int) -> None:
        """Wait until a stream has nothing left to do."""
        self._calls.cuStreamSynchronize(ctypes.c_void_p(stream))

    def drain_all(self) -> None:
        """Wait until no stream has anything left to do."""
        self._calls.cuCtxSynchronize()

    def hold(self, stream: int) -> None:
        """Let a stream do nothing more before `release`."""
        self._calls.cuStreamWaitValue32_v2(
            ctypes.c_void_p(stream), ctypes.c_uint64(ctypes.addressof(self._word)), 1, 0
        )

    def release(self) -> None:
        """Let the held stream go on."""
        self._word.value = 1

    def begin_capture(self, stream: int) -> None:
        """Make a stream one that is being captured in a graph."""
        self._calls.cuStreamBeginCapture_v2(ctypes.c_void_p(stream), 0)

    def end_capture(self, stream: int) -> None:
        """Undo it."""
        self._calls.cuStreamEndCapture(ctypes.c_void_p(stream), None)


class HostMemory:
    """Shared host memory in the place of a GPU's."""

    def __init__(self, comm: native.fabric.Communicator, num_bytes: int) -> None:
        self._memory = comm.allocate(num_bytes)
        self._parts = [
            torch.frombuffer(self._memory.segment(rank), dtype=torch.uint8)
            for rank in range(comm.size)
        ]
        self.by_rank = [part.data_ptr() for part in self._parts]

    def tensor(
        self, rank: int, shape: Sequence[int], dtype: torch.dtype, offset_bytes: int
    ) -> torch.Tensor:
        """Return a part of a rank's memory."""
        stop = offset_bytes + torch.Size(shape).numel() * dtype.itemsize
        return self._parts[rank][offset_bytes:stop].view(dtype).view(tuple(shape))


class SoftwareChannel(CopyEngineChannel):
    """The channel of a world on CPUs over the software driver."""

    def __init__(self, world: World, driver_library: str) -> None:
        self.driver = SoftwareDriver(driver_library)
        self.stream = self.driver.make_stream()
        comm = world.comm

        def allocate(num_bytes: int) -> HostMemory:
            self.driver.drain_all()
            return HostMemory(comm, num_bytes)

        super().__init__(
            comm, allocate, lambda: self.stream, device_index=0, timeout_s=world.timeout_s,
            driver_library=driver_library,
        )  # fmt: skip

    def receive(self, peer: int, into: torch.Tensor, what: str) -> "_Drained":  # type: ignore[override]
        return _Drained(super().receive(peer, into, what), self)

    def flush(self) -> None:
        # A GPU's memory goes back to its stream, the host's to everybody at once.
        kept = list(self._sending)
        super().flush()
        self.driver.drain(self.stream)
        del kept


class _Drained:
    """Implements Receipt: the stream's wait, then the host's."""

    def __init__(self, receipt: Receipt, channel: SoftwareChannel) -> None:
        self._receipt, self._channel = receipt, channel

    def is_ready(self) -> bool:
        return self._receipt.is_ready()

    def wait(self) -> None:
        self._receipt.wait()
        self._channel.driver.drain(self._channel.stream)
