"""Which launcher runs a job: this host's ranks, or a Ray cluster. Imports neither torch nor ray."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated

import typer

from launch.job import JobSpec
from launch.nodes import NodePlace, place_of
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
    int,
    typer.Option(
        min=1,
        help="Nodes that share the processes equally: of the Ray cluster, or hosts "
        "that run this command each.",
    ),
]
NodeRank = Annotated[
    int | None,
    typer.Option(min=0, help="Without Ray: which of --nodes this host is.", show_default=False),
]
RendezvousOption = Annotated[
    str | None,
    typer.Option(
        help="Without Ray: host:port of node 0, where the nodes meet. Node 0 listens there, on "
        "that address alone.",
        show_default=False,
    ),
]


@dataclass(frozen=True, kw_only=True, slots=True)
class LauncherChoice:
    """What starts the processes, and on which nodes."""

    launcher: Launcher = Launcher.TORCHRUN
    address: str | None = None
    """Of the Ray cluster; None: one on this host, for this job."""
    nodes: int = 1
    place: NodePlace | None = None
    """Of this host among the nodes, without Ray."""

    @property
    def is_first(self) -> bool:
        """Whether rank 0 runs below this process."""
        return self.place is None or self.place.node_rank == 0


def choose_launcher(
    launcher: Launcher,
    address: str | None,
    nodes: int,
    node_rank: int | None,
    rendezvous: str | None,
    pin: bool | None,
) -> LauncherChoice:
    """Return what was chosen; refuse options of one launcher for the other.

    Raises:
        ConfigError: an address without Ray, a node's place or pinning with it, or a place that is
            none of the nodes.
    """
    if launcher is Launcher.RAY:
        if pin:
            raise ConfigError("--pin is for processes of this host: Ray places its own")
        if node_rank is not None or rendezvous is not None:
            raise ConfigError("--node-rank and --rendezvous do not go with --launcher ray")
        return LauncherChoice(launcher=launcher, address=address, nodes=nodes)
    if address is not None:
        raise ConfigError("--address needs --launcher ray")
    return LauncherChoice(nodes=nodes, place=place_of(nodes, node_rank, rendezvous))


def run_with(choice: LauncherChoice, spec: JobSpec, reporter: Reporter) -> object:
    """Run a job to its end and return what its recipe returned on rank 0, None on other nodes.

    Raises:
        ConfigError, TopologyError: the request cannot be met here.
        JobFailedError: with the first failing rank's own error; no rank is left running.
    """
    if choice.launcher is Launcher.RAY:
        require_ray()
        from launch.ray.gang import run_on_ray

        return run_on_ray(spec, reporter, address=choice.address)
    from launch.torchrun import run_job

    return run_job(spec, choice.place)


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
