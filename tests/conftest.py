"""Settings of a test run: threads, no network, which tests share a worker, which need a device."""

import os
from pathlib import Path
from typing import Any

import pytest

# Before torch is imported, here and in every rank that a test starts: a few processes share the
# cores, and a pool of threads in each would measure the scheduler.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# A test that needs a download is a test of somebody's network.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

_TESTS = Path(__file__).parent
_RANK_FOLDERS = ("dist", "gpu", "multigpu")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Return 2 for `-n auto`: one worker starts ranks, the other runs everything else."""
    return 2


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Keep all tests that start ranks on one worker: two gangs would fight over the cores.

    Not `--dist loadgroup`, which hides the group in the test's id: pytest-xdist 3.8 does that
    through an attribute that pytest 9.2 does not read.
    """
    from xdist.scheduler import LoadScopeScheduling

    folders = tuple(
        f"{(_TESTS / folder).relative_to(config.rootpath)}/" for folder in _RANK_FOLDERS
    )

    class RanksTogether(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return "ranks" if nodeid.startswith(folders) else nodeid

    return RanksTogether(config, log)


def pytest_itemcollected(item: pytest.Item) -> None:
    """Skip a test that needs a device which this machine has not."""
    for marker, needed in (("gpu", 1), ("multigpu", 2)):
        if item.get_closest_marker(marker) and (found := _num_gpus()) < needed:
            item.add_marker(pytest.mark.skip(reason=f"needs {needed} CUDA GPU(s), found {found}"))


def _num_gpus() -> int:
    import torch

    return torch.cuda.device_count()
