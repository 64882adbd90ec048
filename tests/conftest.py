"""Settings of a test run: threads, no network, which tests share a worker, which need a device."""

import os
from pathlib import Path

import pytest

# Before torch is imported, here and in every rank that a test starts: a few processes share the
# cores, and a pool of threads in each would measure the scheduler.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# A test that needs a download is a test of somebody's network.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

_TESTS = Path(__file__).parent
_RANK_FOLDERS = {"dist", "gpu", "multigpu"}


def pytest_xdist_auto_num_workers() -> int:
    """Return 2 for `-n auto`: one worker starts ranks, the other runs everything else."""
    return 2


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep tests that start ranks on one worker, and skip what this machine has no device for."""
    has_xdist = config.pluginmanager.hasplugin("xdist")
    for item in items:
        if has_xdist and item.path.relative_to(_TESTS).parts[0] in _RANK_FOLDERS:
            item.add_marker(pytest.mark.xdist_group("ranks"))
        for marker, needed in (("gpu", 1), ("multigpu", 2)):
            if item.get_closest_marker(marker) and (found := _num_gpus()) < needed:
                reason = f"needs {needed} CUDA GPU(s), found {found}"
                item.add_marker(pytest.mark.skip(reason=reason))


def _num_gpus() -> int:
    import torch

    return torch.cuda.device_count()
