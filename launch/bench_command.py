"""The command `bench` of cli.py. Imports neither torch nor transformers."""

from pathlib import Path
from typing import Annotated

import typer

from launch.options import Dtype, DtypeOption, Pin, Ranks, Threads, TimeoutS
from tokenfabric.errors import ConfigError

Tune = Annotated[
    bool, typer.Option("--tune", help="Store what was measured, for plans on this machine.")
]
Output = Annotated[
    Path | None,
    typer.Option(
        help="The file to store it in, with --tune. Default: device_tables.json in the folder "
        "TOKENFABRIC_CACHE_DIR.",
        show_default=False,
    ),
]
Seconds = Annotated[float, typer.Option(min=1.0, max=60.0, help="About how long to measure.")]


def bench(
    tune: Tune = False,
    output: Output = None,
    ranks: Ranks = None,
    dtype: DtypeOption = Dtype.AUTO,
    seconds: Seconds = 20.0,
    threads: Threads = None,
    pin: Pin = None,
    timeout_s: TimeoutS = 120.0,
) -> None:
    """Measure GEMMs, attention, copies and the fused reduction on this machine's ranks."""
    from launch.job import JobSpec
    from launch.torchrun import choose_ranks, run_job
    from tokenweave.tuned_tables import default_path

    if output is not None and not tune:
        raise ConfigError("--output is where --tune stores what was measured: give both")
    run_job(
        JobSpec(
            recipe="launch.recipes.tune:run",
            ranks=choose_ranks(ranks),
            args={
                "dtype": dtype.value,
                "seconds": seconds,
                "output": str((output or default_path()).absolute()) if tune else None,
            },
            timeout_s=timeout_s,
            num_threads=threads,
            pin=pin,
        )
    )
