"""A process on a node ends when the node's raylet does."""

import os
import select
import signal
import subprocess
import sys

from tests.house.tree import ROOT

RANK = """
import time
from launch.ray.fate import end_with_raylet
end_with_raylet()
print(__import__("os").getpid(), flush=True)
time.sleep(60)
"""
RAYLET = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {RANK!r}])"


def test_a_rank_does_not_outlive_who_started_it() -> None:
    """SIGKILL, which tells nobody: the rank is gone long before it would have been done."""
    with subprocess.Popen(
        [sys.executable, "-c", RAYLET], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as raylet:
        assert raylet.stdout is not None
        rank = os.pidfd_open(int(raylet.stdout.readline()))
        raylet.send_signal(signal.SIGKILL)
        poll = select.poll()
        poll.register(rank, select.POLLIN)
        assert poll.poll(30_000), "it still runs"
        os.close(rank)
