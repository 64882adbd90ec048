"""NVRTC, NVIDIA's compiler as a library. It needs no GPU and no driver.

Called through ctypes: the library is the one of the nvidia-cuda-nvrtc wheel, which a CUDA build of
torch brings, or one that the system's loader finds. Names are those of nvrtc.h.
"""

import ctypes
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from tokenfabric.errors import TokenFabricError

_MAJORS = (13, 12)
# Below nvidia/, by major version: the wheels of CUDA 13 share a folder, those of 12 do not.
_FOLDERS = {13: "cu13/lib", 12: "cuda_nvrtc/lib"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Compiled:
    """What came of one kernel."""

    symbol: str
    """Its name in the code."""
    cubin: bytes
    ptx: str


class Nvrtc:
    """A loaded NVRTC.

    Attributes:
        version: (major, minor).
        path: what was loaded.
    """

    def __init__(self, path: str) -> None:
        """Load a library.

        Raises:
            TokenFabricError: it does not load, or is no NVRTC.
        """
        self.path = path
        try:
            self._library = ctypes.CDLL(path)
            self._library.nvrtcGetErrorString.restype = ctypes.c_char_p
        except (OSError, AttributeError) as error:
            raise TokenFabricError(f"NVRTC does not load from {path}: {error}") from None
        major, minor = ctypes.c_int(), ctypes.c_int()
        self._check("nvrtcVersion", ctypes.byref(major), ctypes.byref(minor))
        self.version = (major.value, minor.value)

    def architectures(self) -> tuple[int, ...]:
        """Return the compute capabilities that it compiles for: 90 is 9.0."""
        count = ctypes.c_int()
        self._check("nvrtcGetNumSupportedArchs", ctypes.byref(count))
        numbers = (ctypes.c_int * count.value)()
        self._check("nvrtcGetSupportedArchs", numbers)
        return tuple(numbers)

    def compile(self, text: str, name: str, kernel: str, options: Sequence[str]) -> Compiled:
        """Compile one kernel. Takes a second or more; other threads run meanwhile.

        Args:
            text: of the unit.
            name: of the unit, for messages.
            kernel: an expression that names the kernel, template arguments included.
            options: see nvrtcCompileProgram; one of them names a real architecture.

        Raises:
            TokenFabricError: the sources do not compile, with the compiler's messages.
        """
        program = ctypes.c_void_p()
        self._check(
            "nvrtcCreateProgram", ctypes.byref(program), text.encode(), name.encode(), 0, None, None
        )
        try:
            return self._compile(program, kernel, options)
        finally:
            self._library.nvrtcDestroyProgram(ctypes.byref(program))

    def _compile(self, program: ctypes.c_void_p, kernel: str, options: Sequence[str]) -> Compiled:
        self._check("nvrtcAddNameExpression", program, kernel.encode())
        given = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
        code = self._library.nvrtcCompileProgram(program, len(options), given)
        if code != 0:
            log = self._text("nvrtcGetProgramLogSize", "nvrtcGetProgramLog", program)
            raise TokenFabricError(
                f"NVRTC {self.version[0]}.{self.version[1]} does not compile {kernel} "
                f"({self._message(code)}): {log.decode(errors='replace').strip()}"
            )
        symbol = ctypes.c_char_p()
        self._check("nvrtcGetLoweredName", program, kernel.encode(), ctypes.byref(symbol))
        assert symbol.value is not None
        return Compiled(
            symbol=symbol.value.decode(),
            cubin=self._bytes("nvrtcGetCUBINSize", "nvrtcGetCUBIN", program),
            ptx=self._text("nvrtcGetPTXSize", "nvrtcGetPTX", program).decode(),
        )

    def _bytes(self, size_call: str, call: str, program: ctypes.c_void_p) -> bytes:
        size = ctypes.c_size_t()
        self._check(size_call, program, ctypes.byref(size))
        content = ctypes.create_string_buffer(size.value)
        self._check(call, program, content)
        return content.raw

    def _text(self, size_call: str, call: str, program: ctypes.c_void_p) -> bytes:
        """Return what ends with a zero byte, without it."""
        return self._bytes(size_call, call, program).rstrip(b"\0")

    def _check(self, call: str, *arguments: object) -> None:
        code = getattr(self._library, call)(*arguments)
        if code != 0:
            raise TokenFabricError(f"{call} failed: {self._message(code)}")

    def _message(self, code: int) -> str:
        message: bytes = self._library.nvrtcGetErrorString(code)
        return message.decode()


def candidates(folders: Sequence[Path], major: int | None) -> Iterator[str]:
    """Yield what to load, best first.

    Args:
        folders: named nvidia, where packages of that name are installed.
        major: of the CUDA that torch is built for: code of a newer one may not load beside it.
            None: any, newest first.
    """
    majors = _MAJORS if major is None else (major,)
    for number in majors:
        for folder in folders:
            file = folder / _FOLDERS.get(number, "") / f"libnvrtc.so.{number}"
            if file.is_file():
                yield str(file)
    for number in majors:
        yield f"libnvrtc.so.{number}"


def _nvidia_folders() -> list[Path]:
    spec = find_spec("nvidia")
    locations = None if spec is None else spec.submodule_search_locations
    return [Path(location) for location in locations or ()]


@cache
def load_nvrtc(major: int | None) -> Nvrtc:
    """Return NVRTC of a major version of CUDA, or of any.

    Raises:
        TokenFabricError: there is none, with what was tried.
    """
    tried = []
    for path in candidates(_nvidia_folders(), major):
        try:
            return Nvrtc(path)
        except TokenFabricError as error:
            tried.append(str(error))
    raise TokenFabricError(f"there is no NVRTC: {'; '.join(tried)}")
