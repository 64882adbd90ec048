"""What every rank executes: find the recipe, join the world, run. Shared by all launchers."""

from collections.abc import Callable
from importlib import import_module
from typing import cast

import torch

import tokenfabric
from launch.console import ConsoleReporter
from launch.job import JobSpec
from launch.report import Reporter, SilentReporter
from tokenfabric.errors import ConfigError

Recipe = Callable[..., object]
"""`recipe(world, reporter, **args) -> result`; the job's result is rank 0's, plain data."""


def load_recipe(spec: JobSpec) -> Recipe:
    """Import and return the function that a job names.

    Raises:
        ConfigError: there is no such module or function.
    """
    try:
        module = import_module(spec.module)
    except ModuleNotFoundError as error:
        if error.name is None or not spec.module.startswith(error.name):
            raise
        raise ConfigError(f"recipe {spec.recipe}: there is no module {error.name}") from None
    recipe = getattr(module, spec.function, None)
    if not callable(recipe):
        raise ConfigError(f"recipe {spec.recipe}: {spec.module} has no function {spec.function}")
    return cast("Recipe", recipe)


def run_rank(
    spec: JobSpec,
    num_threads: int | None,
    remark: str = "",
    reporter: Reporter | None = None,
    recipe: Recipe | None = None,
) -> object:
    """Run a job's recipe as the rank that this process is. Collective over the job's ranks.

    Args:
        spec: the job, equal on all ranks.
        num_threads: compute threads of this rank; None leaves torch's setting.
        remark: what the user should know of how the ranks were started, told by rank 0.
        reporter: of this rank; default: the terminal for rank 0, silence for the others.
        recipe: instead of the one that the job names.

    Raises:
        ConfigError: the recipe does not exist, or what the recipe itself refuses.
    """
    if recipe is None:
        recipe = load_recipe(spec)
    if num_threads is not None:
        torch.set_num_threads(num_threads)
    with tokenfabric.init(device=spec.device, timeout_s=spec.timeout_s) as world:
        if reporter is None:
            reporter = ConsoleReporter() if world.rank == 0 else SilentReporter()
        if remark:
            reporter.note(remark)
        return recipe(world, reporter, **spec.args)
