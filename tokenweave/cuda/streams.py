"""The streams of one GPU, as a StreamRunner uses them."""

from contextlib import AbstractContextManager

import torch

_HIGH_PRIORITY = -1
"""Blocks of a reduction get the next free SM, before those of a product that is waiting for one."""


class CudaStreams:
    """Implements Streams. Events carry no times, which would cost more to record."""

    def __init__(self, device: torch.device):
        """Take the GPU."""
        self._device = device

    def current(self) -> torch.cuda.Stream:
        return torch.cuda.current_stream(self._device)

    def beside(self) -> torch.cuda.Stream:
        return torch.cuda.Stream(self._device, priority=_HIGH_PRIORITY)  # type: ignore[no-untyped-call]

    def event(self) -> torch.cuda.Event:
        return torch.cuda.Event()  # type: ignore[no-untyped-call]

    def record(self, event: torch.cuda.Event, stream: torch.cuda.Stream) -> None:
        event.record(stream)

    def wait(self, stream: torch.cuda.Stream, event: torch.cuda.Event) -> None:
        stream.wait_event(event)

    def on(self, stream: torch.cuda.Stream) -> AbstractContextManager[object]:
        return torch.cuda.stream(stream)
