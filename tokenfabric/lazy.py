"""Names of a package that are imported on first use, and what to say when torch is not there."""

from collections.abc import Mapping
from importlib import import_module
from typing import Any


def load(package: str, name: str, homes: Mapping[str, str]) -> Any:
    """Return `name` from the module that defines it: the body of a package's `__getattr__`.

    Args:
        package: whose attribute is asked for.
        name: the attribute.
        homes: the module of every name that loads on first use.

    Raises:
        AttributeError: the package has no such name.
        ModuleNotFoundError: torch is missing, which no install of this library brings.
    """
    if name not in homes:
        raise AttributeError(f"module {package!r} has no attribute {name!r}")
    try:
        return getattr(import_module(homes[name]), name)
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise ModuleNotFoundError(
            f"{package}.{name} needs torch >= 2.11. It is not installed with tokenfabric, because "
            "which build (CPU, CUDA) is your choice: pip install torch==2.13.0, or see "
            "https://pytorch.org/get-started",
            name="torch",
        ) from None
