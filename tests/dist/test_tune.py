"""`tokenfabric bench` with real ranks: what is measured becomes a table of this machine."""

from pathlib import Path

from launch.recipes.machine_key import machine_key
from launch.recipes.precision import choose_dtype
from launch.recipes.tune import Sizes, run
from launch.report import SilentReporter
from tokenfabric.testing.spawn import run_ranks
from tokenfabric.world import World
from tokenweave.tuned_tables import MachineKey, read_tuned, tuned_device

# Far enough apart that the larger of two takes longer on a busy machine too.
SMALL = Sizes(
    gemms=((256, 256),), rows=(16, 1024), attention=(32, 512), heads=2, head_dim=32, hidden=256,
    reduced=(1, 4096), copied=1 << 20,
)  # fmt: skip


def _rank_tune(world: World, output: str) -> MachineKey:
    run(world, SilentReporter(), dtype="fp32", seconds=0.1, output=output, sizes=SMALL)
    return machine_key(world, choose_dtype("fp32"))


def test_measured_numbers_are_found_again_by_the_ranks_key(tmp_path: Path) -> None:
    """Every rank has the same key; its table holds what was measured, each with its source."""
    path = tmp_path / "tables.json"
    keys = run_ranks(_rank_tune, 2, str(path), timeout_s=90.0)
    assert keys[0] == keys[1]
    device = tuned_device(path, keys[0])
    assert device is not None
    assert device.gemm_flops_per_sm > 0
    assert not device.has_streams
    (table,) = read_tuned(path).tables
    assert table.key.world_size == 2
    assert table.provenance.rung == "measured on CPU ranks"
    measured = {name for name, it in table.numbers.items() if "measured on 2" in it["source"]}
    assert {"gemm_flops_per_sm", "link_bandwidth", "two_shot_start_s", "join_s"} <= measured
