"""The launcher's process of a case: `python -m tests.faults.driver <request as JSON>`."""

import json
import signal
import sys
from dataclasses import asdict, dataclass
from typing import Any

import typer

from launch.cli import main
from launch.console import ConsoleReporter
from launch.job import JobSpec
from launch.nodes import NodePlace
from launch.torchrun import run_job


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """A job, and how to start it."""

    spec: dict[str, Any]
    """Fields of the `JobSpec`."""
    uses_ray: bool = False
    address: str | None = None
    node_rank: int = 0
    rendezvous: str = ""
    """Empty: this host alone."""

    def command(self) -> list[str]:
        """Return the command that runs it."""
        return [sys.executable, "-m", "tests.faults.driver", json.dumps(asdict(self))]

    def run(self) -> None:
        """Run the job as the `tokenfabric` command would."""
        spec = JobSpec(**self.spec)
        if self.uses_ray and "output" in spec.args:
            from launch.ray.training import train_on_ray

            train_on_ray(spec, address=self.address, folder=str(spec.args["output"]))
        elif self.uses_ray:
            from launch.ray.gang import run_on_ray

            run_on_ray(spec, ConsoleReporter(), address=self.address)
        else:
            is_alone = not self.rendezvous
            run_job(spec, None if is_alone else NodePlace.parse(self.node_rank, self.rendezvous))


def run(request: str) -> None:
    """Run the request, and fail and be interrupted as the `tokenfabric` command is."""
    Request(**json.loads(request)).run()


if __name__ == "__main__":
    # What a shell starts in the background inherits that Control-C is ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(run)
    main(app)
