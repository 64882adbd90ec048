"""The command as a process of its own."""

import subprocess
import sys

from tests.house.tree import ROOT

LAUNCH = ("-m", "launch")


def run(*args: str, program: tuple[str, ...] = LAUNCH) -> subprocess.CompletedProcess[str]:
    """Run the command to its end."""
    return subprocess.run(
        [sys.executable, *program, *args],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
