"""The data types that `--dtype` names."""

import torch

from tokenfabric.errors import ConfigError

_DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def choose_dtype(name: str) -> torch.dtype:
    """Return the data type for "bf16", "fp32" or "auto".

    "auto" is bf16 where this CPU multiplies it natively, otherwise fp32: emulated bf16 is slower
    than fp32 although it moves half the bytes.

    Raises:
        ConfigError: no such name.
    """
    if name == "auto":
        return torch.bfloat16 if _multiplies_bf16() else torch.float32
    if name not in _DTYPES:
        raise ConfigError(f"dtype must be auto, {' or '.join(_DTYPES)}, got {name!r}")
    return _DTYPES[name]


def dtype_name(dtype: torch.dtype) -> str:
    """Return the name that `choose_dtype` takes for `dtype`."""
    return next(name for name, known in _DTYPES.items() if known == dtype)


def _multiplies_bf16() -> bool:
    # avx512_bf16, amx_bf16 on x86; bf16 on Arm.
    return any("bf16" in name and value is True for name, value in _capabilities().items())


def _capabilities() -> dict[str, object]:
    return dict(torch.cpu.get_capabilities())
