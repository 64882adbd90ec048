"""The implementations of local attention, best first, and the choice among them.

Another implementation is one more file like local_flash_cpu.py, with its own capability, and one
more entry in `implementations`.
"""

from tokenring.capability import LocalChoice, LocalNeeds, choose_capability
from tokenring.local_flash_cpu import FlashCpu
from tokenring.local_flash_cuda import FlashCuda
from tokenring.local_protocol import LocalAttention
from tokenring.local_tiled import Tiled


def implementations() -> tuple[LocalAttention, ...]:
    """Return all of them, the preferred first."""
    return (FlashCpu(), FlashCuda(), Tiled())


def choose_local(needs: LocalNeeds, name: str = "auto") -> tuple[LocalAttention, LocalChoice]:
    """Return the implementation for these needs, and why none before it was taken.

    Args:
        needs: what all blocks of the attention need together.
        name: "auto", or the one that must be taken.

    Raises:
        ConfigError: none meets the needs, or not the named one; the message has the reasons.
    """
    found = implementations()
    if name == "auto":
        # That the implementations for other devices cannot is no news.
        found = tuple(local for local in found if needs.device in local.capability.devices) or found
    choice = choose_capability(needs, [local.capability for local in found], name)
    return next(local for local in found if local.capability.name == choice.name), choice
