"""A rank ends with its node. Knows no ray."""

import os
import select
import threading


def end_with_raylet() -> None:
    """End this process as soon as the one that started it, its node's raylet, has ended.

    Ray's worker processes outlive a raylet that was killed, some by minutes: a rank of a node that
    the cluster has lost would go on computing, and its peers would wait for it.
    """
    raylet = os.pidfd_open(os.getppid())
    threading.Thread(target=_end_with, args=(raylet,), daemon=True).start()


def _end_with(process: int) -> None:
    poll = select.poll()
    poll.register(process, select.POLLIN)
    while not poll.poll():
        pass
    os._exit(1)
