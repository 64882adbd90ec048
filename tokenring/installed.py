"""Whether an optional package of kernels is there, and in which version. Imports nothing of it."""

import functools
import importlib.metadata
import re

import torch


@functools.cache
def why_not_installed(distribution: str, least: tuple[int, ...]) -> str | None:
    """Return why a package cannot be used here, None if it can.

    Args:
        distribution: its name in the package index.
        least: the first numbers of the oldest version whose functions are those called here.
    """
    wanted = ".".join(map(str, least))
    try:
        version = importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return f"needs the package {distribution} {wanted} or newer"
    found = tuple(int(number) for number in re.findall(r"\d+", version)[: len(least)])
    if found < least:
        return f"needs {distribution} {wanted} or newer, found {version}"
    return None


def why_not_on_this_gpu(*majors: int) -> str | None:
    """Return why kernels for GPUs of certain compute capabilities do not run on the current one.

    Args:
        majors: the first numbers of the compute capabilities.
    """
    if not torch.cuda.is_available():
        return "needs a GPU"
    major, minor = torch.cuda.get_device_capability()
    if major in majors:
        return None
    wanted = " or ".join(f"{it}.x" for it in majors)
    return f"needs compute capability {wanted}, this GPU has {major}.{minor}"
