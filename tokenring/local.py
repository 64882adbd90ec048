"""The implementations of local attention, best first, and the choice among them.

Another implementation is one more file like local_flash_cpu.py, with its own capability, and one
more entry in `implementations`.
"""

from tokenring.capability import LocalChoice, LocalNeeds, choose_capability
from tokenring.local_cudnn import CudnnAttention
from tokenring.local_flash_attn_2 import FlashAttn2
from tokenring.local_flash_attn_3 import FlashAttn3
from tokenring.local_flash_attn_4 import FlashAttn4
from tokenring.local_flash_cpu import FlashCpu
from tokenring.local_flash_cuda import FlashCuda
from tokenring.local_protocol import LocalAttention
from tokenring.local_tiled import Tiled


def implementations() -> tuple[LocalAttention, ...]:
    """Return all of them, the preferred first.

    On GPUs: packages that somebody has installed for the purpose, newest first, then torch's flash
    kernels, which take every band. cuDNN's take two kinds, so they are taken by name only.
    """
    return (
        FlashCpu(), FlashAttn4(), FlashAttn3(), FlashAttn2(), FlashCuda(), CudnnAttention(),
        Tiled(),
    )  # fmt: skip


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
        found = tuple(
            local
            for local in found
            if needs.device in local.capability.devices
            and not (local.capability.is_optional and local.capability.why_unavailable)
        )
    choice = choose_capability(needs, [local.capability for local in found], name)
    return next(local for local in found if local.capability.name == choice.name), choice
