"""How much memory is free, as the host and a container say it."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from launch.memory import free_bytes, require_memory
from tokenfabric.errors import ConfigError


@pytest.fixture
def meminfo(tmp_path: Path) -> Path:
    """1 GiB is available."""
    path = tmp_path / "meminfo"
    path.write_text("MemTotal: 2097152 kB\nMemAvailable: 1048576 kB\nHugePages_Total: 0\n")
    return path


def test_host_without_limit(meminfo: Path, tmp_path: Path) -> None:
    """No control group, or one without a limit: the host decides."""
    assert free_bytes(meminfo, tmp_path) == 1 << 30
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("5\n")
    assert free_bytes(meminfo, tmp_path) == 1 << 30


def test_container_with_limit(meminfo: Path, tmp_path: Path) -> None:
    """What is left of the container's limit counts, if it is less."""
    (tmp_path / "memory.max").write_text(f"{600 << 20}\n")
    (tmp_path / "memory.current").write_text(f"{100 << 20}\n")
    assert free_bytes(meminfo, tmp_path) == 500 << 20


def test_model_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    """The message has both figures."""
    save_file({"w": torch.zeros(1000)}, tmp_path / "model.safetensors")
    require_memory(tmp_path, 4, "a model")
    with pytest.raises(ConfigError, match=r"needs 1000000000\.0 GB, but .* GB of memory are free"):
        require_memory(tmp_path, 10**15, "a model")
