"""The command line that benchmarks on a GPU share."""

import argparse
from pathlib import Path

import torch

REPOSITORY = Path(__file__).resolve().parents[1]
RESULTS = REPOSITORY / "benchmarks" / "results"


def parse(description: str, seconds: float) -> argparse.Namespace:
    """Return the options: seconds of each cell, where results go, the commit of a copy."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--seconds", type=float, default=seconds, help="timed rounds of one cell")
    parser.add_argument("--quick", action="store_true", help="a few cells, nothing written")
    parser.add_argument("--directory", type=Path, default=RESULTS)
    parser.add_argument("--commit", help="of the sources, where they are a copy without git")
    return parser.parse_args()


def gpu() -> torch.device:
    """Return the GPU that is measured, from now on the current one."""
    torch.cuda.set_device(0)
    return torch.device("cuda", 0)
