"""What GPUs could be used for. Pure."""

from collections.abc import Iterable

from launch.doctor.execution_path import ExecutionPath
from launch.doctor.machine import Gpus


def gpu_paths(gpus: Gpus | None) -> Iterable[ExecutionPath]:
    """Yield the CUDA paths: none is in this version, and the hardware may not be either."""
    for name, lacks in (
        ("CUDA, NVLink multicast (multimem)", _lacks_multicast(gpus)),
        ("CUDA, peer to peer", _lacks_peers(gpus)),
    ):
        why = "not in this version"
        yield ExecutionPath(name=name, runs=False, why=why if lacks is None else f"{why}; {lacks}")


def _lacks_gpus(gpus: Gpus | None, count: int) -> str | None:
    if gpus is None:
        return "whether there is a GPU is not known"
    if not gpus.devices:
        return f"no GPU: {gpus.problem}"
    return None if len(gpus.devices) >= count else f"only {len(gpus.devices)} GPU"


def _lacks_multicast(gpus: Gpus | None) -> str | None:
    lacks = _lacks_gpus(gpus, 2)
    if lacks is not None or gpus is None:
        return lacks
    without = [idx for idx, gpu in enumerate(gpus.devices) if not gpu.has_multicast]
    if without:
        return f"no multicast on GPU(s) {', '.join(map(str, without))}"
    unlinked = [idx for idx, gpu in enumerate(gpus.devices) if gpu.num_nvlinks == 0]
    return f"no NVLink on GPU(s) {', '.join(map(str, unlinked))}" if unlinked else None


def _lacks_peers(gpus: Gpus | None) -> str | None:
    lacks = _lacks_gpus(gpus, 2)
    if lacks is not None or gpus is None:
        return lacks
    alone = [idx for idx, gpu in enumerate(gpus.devices) if len(gpu.peers) < len(gpus.devices) - 1]
    return f"GPU(s) {', '.join(map(str, alone))} cannot map all others" if alone else None
