"""Whether the models of a recipe fit into memory, before they are loaded.

Linux grants memory that it does not have and kills a process when it is used: without this check a
model that is too large ends in SIGKILL instead of in a sentence.
"""

import math
from pathlib import Path

from tokenfabric.errors import ConfigError
from tokenweave.integrations.checkpoint import Checkpoint

_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")


def require_memory(directory: Path, bytes_per_weight: int, what: str) -> None:
    """Check that all ranks together find room for a checkpoint's weights.

    Args:
        directory: the checkpoint.
        bytes_per_weight: sum over all copies of the model on this host.
        what: names the copies in the error.

    Raises:
        ConfigError: too little memory is free, with the figures; or the checkpoint is unreadable.
    """
    with Checkpoint(directory) as checkpoint:
        num_weights = sum(math.prod(checkpoint.shape(name)) for name in checkpoint.names)
    needed, free = num_weights * bytes_per_weight, free_bytes()
    if needed > free:
        raise ConfigError(
            f"{what} of {num_weights / 1e9:.2f} billion weights needs {needed / 1e9:.1f} GB, but "
            f"{free / 1e9:.1f} GB of memory are free: take a smaller model, or --dtype bf16"
        )


def free_bytes(meminfo: Path = _MEMINFO, cgroup: Path = _CGROUP) -> int:
    """Return how much this process and its ranks can still use: the host's or the container's."""
    fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
    on_host = int(fields["MemAvailable"].split()[0]) << 10
    limit, used = cgroup / "memory.max", cgroup / "memory.current"
    if not limit.is_file() or not used.is_file() or limit.read_text().strip() == "max":
        return on_host
    return min(on_host, int(limit.read_text()) - int(used.read_text()))
