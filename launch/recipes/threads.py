"""More threads for one rank while the others sleep."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from tokenfabric.topology import usable_cores


@contextmanager
def all_cores() -> Iterator[None]:
    """Let torch compute with a thread on every core of this process, then as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(len(usable_cores()))
    try:
        yield
    finally:
        torch.set_num_threads(before)
