"""Start the ranks of a job and give them something to do: the `tokenfabric` command.

`job` says what to run (pure), `torchrun` starts it, `rank` is what every rank executes, `recipes`
are the jobs themselves. Recipes know neither how they were started nor where their output goes.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from launch.ray.session import RayGang
    from launch.train_job import train

__all__ = ["RayGang", "train"]

_HOME = {"RayGang": "launch.ray.session", "train": "launch.train_job"}


def __getattr__(name: str) -> Any:
    """Import what was asked for: one needs Ray, both need torch."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOME[name]), name)
