"""A run that starts a Ray cluster of its own: its ranks have the variables of launched ranks."""

import json
from pathlib import Path

import pytest

from launch.job import JobSpec

pytest.importorskip("ray")

from launch.ray.training import train_on_ray  # needs ray


@pytest.mark.timeout(180)
def test_ranks_have_the_variables_of_launched_ranks_and_the_jobs_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of the library give way to the user's, those of the job do not."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "yes")
    monkeypatch.setenv("PYTHONHASHSEED", "1")
    names = ["OMP_NUM_THREADS", "MALLOC_TRIM_THRESHOLD_", "HF_HUB_OFFLINE", "PYTHONHASHSEED"]
    spec = JobSpec(
        recipe="tests.dist.launch_recipes:write_variables", ranks=2, timeout_s=30.0, num_threads=1,
        environment={"PYTHONHASHSEED": "7"}, args={"folder": str(tmp_path), "names": names},
    )  # fmt: skip
    train_on_ray(spec, address=None, folder=str(tmp_path / "ray"))
    for rank in range(2):
        found = json.loads((tmp_path / f"rank-{rank}").read_text())
        assert found == ["1", str(1 << 30), "yes", "7"]
