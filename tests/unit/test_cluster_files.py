"""The files to start clusters from: as far as a machine without those systems can check them."""

import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.house.tree import ROOT

yaml = pytest.importorskip("yaml")
CLUSTER = ROOT / "launch" / "cluster"


def load(name: str) -> dict[str, Any]:
    return yaml.safe_load((CLUSTER / name).read_text())  # type: ignore[no-any-return]


def test_ray_up_takes_the_file() -> None:
    """Ray's own check of the schema, and its defaults filled in."""
    pytest.importorskip("ray")
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = prepare_config(load("ray_up.yaml"))
    validate_config(config)
    assert config["provider"]["type"] == "local"
    assert "--dashboard-host=127.0.0.1" in config["head_start_ray_commands"][-1]


def test_kuberay_file_is_a_ray_cluster() -> None:
    """What the operator's schema requires, and that nothing is exposed."""
    cluster = load("kuberay.yaml")
    assert (cluster["apiVersion"], cluster["kind"]) == ("ray.io/v1", "RayCluster")
    spec = cluster["spec"]
    assert spec["authOptions"] == {"mode": "token"}
    head, (workers,) = spec["headGroupSpec"], spec["workerGroupSpecs"]
    assert head["serviceType"] == "ClusterIP"
    assert head["rayStartParams"]["dashboard-host"] == "127.0.0.1"
    for group in (head, workers):
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        assert container["resources"]["requests"] == container["resources"]["limits"]
        mounted = {mount["name"] for mount in container["volumeMounts"]}
        assert mounted == {volume["name"] for volume in pod["volumes"]}
    assert workers["minReplicas"] <= workers["replicas"] <= workers["maxReplicas"]


FAKE = """#!/usr/bin/env bash
echo "$(basename "$0") $*" >> "$CALLS"
case "$(basename "$0")" in
    scontrol) printf 'node1\\nnode2\\n' ;;
    srun)
        [[ "$*" == *hostname* ]] && echo 10.0.0.1
        # The command ends the cluster: not before the workers' calls are there.
        [[ "$*" == *launch* ]] && until grep -q "node2 ray start" "$CALLS"; do :; done
        true ;;
esac
"""


def calls_of(script: str, args: list[str], tmp_path: Path, **variables: str) -> list[str]:
    """Run a script with fakes of what it calls; return the calls."""
    calls = tmp_path / "calls"
    for name in ("scontrol", "srun", "torchrun"):
        fake = tmp_path / name
        fake.write_text(FAKE)
        fake.chmod(0o755)
    path = f"{tmp_path}:/usr/bin:/bin"
    done = subprocess.run(
        [CLUSTER / script, *args], env={"PATH": path, "CALLS": str(calls), **variables},
        capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return calls.read_text().splitlines()


def test_slurm_starts_a_head_workers_and_one_command(tmp_path: Path) -> None:
    calls = calls_of(
        "slurm.sh", ["train", "--steps", "3"], tmp_path, SLURM_JOB_NODELIST="node[1-2]",
        SLURM_CPUS_PER_TASK="8", SLURM_JOB_NUM_NODES="2",
    )  # fmt: skip
    assert sum("ray start --head --node-ip-address=10.0.0.1" in call for call in calls) == 1
    assert sum("-w node2 ray start --address=10.0.0.1:6379" in call for call in calls) == 1
    (command,) = [call for call in calls if "python -m launch" in call]
    assert command.endswith("train --steps 3 --launcher ray --address 10.0.0.1:6379 --nodes 2")


def test_two_hosts_run_torchrun(tmp_path: Path) -> None:
    args = ["1", "10.0.0.1", "generate", "--prompt", "Hello"]
    (call,) = calls_of("torchrun_two_hosts.sh", args, tmp_path, RANKS_PER_HOST="4")
    assert call == (
        "torchrun --nnodes=2 --node-rank=1 --nproc-per-node=4 --master-addr=10.0.0.1 "
        "--master-port=29500 -m launch generate --prompt Hello"
    )
    done = subprocess.run(
        [CLUSTER / "torchrun_two_hosts.sh"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr[:6]) == (2, "usage:")
