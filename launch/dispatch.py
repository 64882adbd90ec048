"""Which launcher runs a job: this host's ranks, or a Ray cluster. Imports neither torch nor ray."""

from enum import StrEnum
from typing import Annotated

import typer

from launch.job import JobSpec
from launch.report import Reporter
from tokenfabric.errors import ConfigError


class Launcher(StrEnum):
    """What starts the processes."""

    TORCHRUN = "torchrun"
    RAY = "ray"


LauncherOption = Annotated[
    Launcher,
    typer.Option(
        help="torchrun: processes of this host, or torchrun's own below it. ray: a Ray cluster."
    ),
]
Address = Annotated[
    str | None,
    typer.Option(
        help="Of the Ray cluster, 'auto' for the one this host is part of. Default: one on this "
        "host, for this job.",
        show_default=False,
    ),
]
Nodes = Annotated[
    int, typer.Option(min=1, help="Nodes of the Ray cluster that share the processes equally.")
]


def check_launcher(launcher: Launcher, address: str | None, nodes: int, pin: bool | None) -> None:
    """Refuse options of one launcher for the other.

    Raises:
        ConfigError: an address or several nodes without Ray, or pinning with it.
    """
    if launcher is not Launcher.RAY and (address is not None or nodes != 1):
        raise ConfigError("--address and --nodes need --launcher ray")
    if launcher is Launcher.RAY and pin:
        raise ConfigError("--pin is for processes of this host: Ray places its own")


def run_with(launcher: Launcher, spec: JobSpec, reporter: Reporter, address: str | None) -> object:
    """Run a job to its end and return what its recipe returned on rank 0.

    Raises:
        ConfigError, TopologyError: the request cannot be met here.
        JobFailedError: with the first failing rank's own error; no rank is left running.
    """
    if launcher is Launcher.RAY:
        require_ray()
        from launch.ray.gang import run_on_ray

        return run_on_ray(spec, reporter, address=address)
    from launch.torchrun import run_job

    return run_job(spec)


def require_ray() -> None:
    """Check that Ray is installed, in a version that this library knows.

    Raises:
        ConfigError: it is not; says what to install.
    """
    from importlib.metadata import PackageNotFoundError, version

    install = "install it with pip install 'tokenfabric[ray]'"
    try:
        found = version("ray")
    except PackageNotFoundError:
        raise ConfigError(f"--launcher ray needs Ray, which is not installed: {install}") from None
    numbers = tuple(int(part) for part in found.split(".")[:2])
    if numbers < (2, 50):
        raise ConfigError(
            f"--launcher ray needs Ray 2.50 or later, but {found} is there: {install}"
        )
