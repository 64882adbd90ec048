"""Checks of tensors before a collective: what is wrong is said by name, on this rank, before it
takes part.
"""

import torch

from tokenfabric.errors import ConfigError

REDUCIBLE = (torch.float32, torch.bfloat16, torch.float16)
_CPU = torch.device("cpu")


def is_ready(
    x: torch.Tensor, shape: torch.Size, dtype: torch.dtype, gpu: int | None = None
) -> bool:
    """Whether x is what a kernel takes: the quick test of every call. What is wrong when it is not,
    the checks below say by name. `gpu` is the ordinal of a world's GPU, None for the CPU.
    """
    return (
        x.shape == shape
        and x.dtype is dtype
        and (x.is_cpu if gpu is None else x.is_cuda and x.get_device() == gpu)
        and x.layout is torch.strided
        and x.is_contiguous()
    )


def tensor(name: str, x: torch.Tensor, device: torch.device = _CPU) -> None:
    """Check a tensor that is reduced: dtype, device, layout."""
    if x.dtype not in REDUCIBLE:
        raise ConfigError(f"{name} must be float32, bfloat16 or float16, got {x.dtype}")
    any_dtype(name, x, device)


def any_dtype(name: str, x: torch.Tensor, device: torch.device = _CPU) -> None:
    """Check a tensor that is only moved: device and layout."""
    if x.device != device:
        raise ConfigError(f"{name} is on {x.device}, but this world is on {device}")
    if x.layout is not torch.strided or not x.is_contiguous():
        raise ConfigError(
            f"{name} of shape {tuple(x.shape)} and strides {_strides(x)} is not contiguous: pass "
            f"{name}.contiguous()"
        )


def activation(name: str, x: torch.Tensor, device: torch.device = _CPU) -> tuple[int, int]:
    """Check a [..., hidden] tensor that is reduced and return (tokens, hidden)."""
    tensor(name, x, device)
    if x.dim() == 0 or x.shape[-1] == 0:
        raise ConfigError(f"{name} must be [..., hidden] with hidden > 0, got {tuple(x.shape)}")
    hidden = x.shape[-1]
    return x.numel() // hidden, hidden


def like(
    name: str,
    x: torch.Tensor | None,
    shape: torch.Size,
    dtype: torch.dtype,
    device: torch.device = _CPU,
) -> None:
    """Check an optional tensor against the shape and dtype it must have."""
    if x is None:
        return
    if x.shape != shape or x.dtype != dtype:
        raise ConfigError(
            f"{name} must be {tuple(shape)} of {dtype}, got {tuple(x.shape)} of {x.dtype}"
        )
    any_dtype(name, x, device)


def vector(
    name: str,
    x: torch.Tensor | None,
    hidden: int,
    dtypes: tuple[torch.dtype, ...],
    device: torch.device = _CPU,
) -> None:
    """Check an optional per-channel vector."""
    if x is None:
        return
    if x.shape != (hidden,) or x.dtype not in dtypes:
        wanted = " or ".join(dict.fromkeys(str(dtype) for dtype in dtypes))
        raise ConfigError(
            f"{name} must be ({hidden},) of {wanted}, got {tuple(x.shape)} of {x.dtype}"
        )
    any_dtype(name, x, device)


def output(
    name: str,
    x: torch.Tensor | None,
    shape: torch.Size,
    dtype: torch.dtype,
    device: torch.device = _CPU,
) -> torch.Tensor:
    """Check where a result goes, or make it: private memory of this rank."""
    if x is None:
        return torch.empty(shape, dtype=dtype, device=device)
    if not is_ready(x, shape, dtype, device.index):
        like(name, x, shape, dtype, device)
    return x


def no_gradient(**tensors: torch.Tensor | None) -> None:
    """Refuse tensors that autograd is following: nothing here could give them a gradient."""
    if not torch.is_grad_enabled():
        return
    for name, x in tensors.items():
        if x is not None and x.requires_grad:
            raise ConfigError(
                f"{name} requires a gradient, and tokenweave's collectives have none: call them "
                "under torch.no_grad() or torch.inference_mode()"
            )


def _strides(x: torch.Tensor) -> str:
    return str(x.stride()) if x.layout is torch.strided else str(x.layout)
