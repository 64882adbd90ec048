"""What the CUDA driver says about this machine's GPUs. No context is made, no toolkit is needed.

For a process of its own (child.py): the driver's libraries are loaded into whoever asks.
"""

import ctypes
from collections.abc import Callable

from launch.doctor.machine import Gpu, Gpus

_CUDA_LIBRARY = "libcuda.so.1"
_NVML_LIBRARY = "libnvidia-ml.so.1"

# CUdevice_attribute
_MAJOR, _MINOR, _MULTICAST = 75, 76, 132
_MAX_NVLINKS = 18  # NVML_NVLINK_MAX_LINKS
_NVML_SUCCESS, _NVML_INVALID_ARGUMENT, _NVML_NOT_SUPPORTED = 0, 2, 3
_NAME_BYTES = 256


class DriverError(Exception):
    """A library of the driver is missing, or one of its functions failed."""


def read_gpus(cuda_library: str = _CUDA_LIBRARY, nvml_library: str = _NVML_LIBRARY) -> Gpus:
    """Return the devices that CUDA_VISIBLE_DEVICES lets this process see.

    Raises:
        DriverError: there is no driver, or it does not answer.
    """
    cuda = _Cuda(cuda_library)
    indices = range(cuda.number("cuDeviceGetCount"))
    problem, num_nvlinks = None, dict.fromkeys(indices)
    try:
        num_nvlinks |= _count_nvlinks(nvml_library, [cuda.bus_id(index) for index in indices])
    except DriverError as error:
        problem = f"the number of NVLinks is not known: {error}"
    version = cuda.number("cuDriverGetVersion")
    return Gpus(
        driver=f"{version // 1000}.{version % 1000 // 10}",
        devices=tuple(cuda.device(index, len(indices), num_nvlinks[index]) for index in indices),
        problem=problem if indices else "the driver sees no device",
    )


class _Cuda:
    def __init__(self, library: str) -> None:
        self._library = _load(library)
        self._call("cuInit", ctypes.c_uint(0))

    def _call(self, name: str, *args: object) -> None:
        code = _function(self._library, name)(*args)
        if code:
            text = ctypes.c_char_p()
            _function(self._library, "cuGetErrorName")(code, ctypes.byref(text))
            raise DriverError(f"{name} failed: {(text.value or b'unknown').decode()} ({code})")

    def number(self, name: str, *args: int) -> int:
        """Return the integer that a function writes through its first argument."""
        value = ctypes.c_int()
        self._call(name, ctypes.byref(value), *args)
        return value.value

    def bus_id(self, index: int) -> bytes:
        text = ctypes.create_string_buffer(_NAME_BYTES)
        self._call("cuDeviceGetPCIBusId", text, _NAME_BYTES, self.number("cuDeviceGet", index))
        return text.value

    def device(self, index: int, count: int, num_nvlinks: int | None) -> Gpu:
        handle = self.number("cuDeviceGet", index)
        name = ctypes.create_string_buffer(_NAME_BYTES)
        self._call("cuDeviceGetName", name, _NAME_BYTES, handle)
        memory = ctypes.c_size_t()
        self._call("cuDeviceTotalMem_v2", ctypes.byref(memory), handle)

        def attribute(number: int) -> int:
            return self.number("cuDeviceGetAttribute", number, handle)

        others = [peer for peer in range(count) if peer != index]
        reaches = {
            peer: self.number("cuDeviceCanAccessPeer", handle, self.number("cuDeviceGet", peer))
            for peer in others
        }
        return Gpu(
            name=name.value.decode(errors="replace"),
            memory_bytes=memory.value,
            compute_capability=f"{attribute(_MAJOR)}.{attribute(_MINOR)}",
            has_multicast=bool(attribute(_MULTICAST)),
            peers=tuple(peer for peer in others if reaches[peer]),
            num_nvlinks=num_nvlinks,
        )


def _count_nvlinks(library: str, bus_ids: list[bytes]) -> dict[int, int]:
    """Return the active NVLinks of each device."""
    nvml = _load(library)
    _nvml(nvml, "nvmlInit_v2")
    try:
        counts = {}
        for index, bus_id in enumerate(bus_ids):
            handle = ctypes.c_void_p()
            _nvml(nvml, "nvmlDeviceGetHandleByPciBusId_v2", bus_id, ctypes.byref(handle))
            counts[index] = sum(_is_active(nvml, handle, link) for link in range(_MAX_NVLINKS))
        return counts
    finally:
        _nvml(nvml, "nvmlShutdown")


def _is_active(nvml: ctypes.CDLL, handle: ctypes.c_void_p, link: int) -> bool:
    state = ctypes.c_uint()
    code = _function(nvml, "nvmlDeviceGetNvLinkState")(handle, link, ctypes.byref(state))
    # A device has fewer links than the most there are, or none at all.
    if code in (_NVML_INVALID_ARGUMENT, _NVML_NOT_SUPPORTED):
        return False
    if code != _NVML_SUCCESS:
        raise DriverError(f"nvmlDeviceGetNvLinkState failed: {code}")
    return bool(state.value)


def _nvml(nvml: ctypes.CDLL, name: str, *args: object) -> None:
    code = _function(nvml, name)(*args)
    if code != _NVML_SUCCESS:
        raise DriverError(f"{name} failed: {code}")


def _load(library: str) -> ctypes.CDLL:
    try:
        return ctypes.CDLL(library)
    except OSError as error:
        raise DriverError(f"no NVIDIA driver: {error}") from None


def _function(library: ctypes.CDLL, name: str) -> Callable[..., int]:
    try:
        function: Callable[..., int] = getattr(library, name)
        return function
    except AttributeError:
        raise DriverError(f"this driver has no {name}: it is too old") from None
