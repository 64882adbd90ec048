"""Planners are pure: the standard library without I/O, clocks and chance, and each other."""

import sys

import pytest

from tests.house.tree import Import, imports_of, is_within, modules

# Names by what comes before them.
PLANNERS_OF = {
    "tokenfabric": "cuda.capability cuda.kernels.backend kernel machine placement placement_advice "
    "schedule simulate timeline trace",
    "tokenweave": "batch block_cost cuda.plan cuda.table device device_at_hand graph_plan "
    "host_plan model_shape plan reduction_cost shard_plan split split_cost split_plan "
    "split_reasons stage_work stream_plan tuning waves",
    "tokenring": "blocks capability check check_coverage choose cost decode_plan direction explain "
    "inputs kernels lower mask movement own partition plan positions problem push rank_plan reach "
    "relay results runs tiles topology windows",
    "launch": "job nodes",
    "launch.doctor": "cpu_paths execution_path findings gpu_paths machine model_paths requirements",
}
PLANNERS = {f"{head}.{name}" for head, names in PLANNERS_OF.items() for name in names.split()}
CONFIGS = ("tokenweave.config", "tokenring.config")
IMPURE = "os io time datetime pathlib random socket subprocess threading multiprocessing tempfile"
PURE = {*PLANNERS, *CONFIGS, "tokenfabric.errors"} | (sys.stdlib_module_names - set(IMPURE.split()))


def is_pure(item: Import) -> bool:
    """Return whether a planner may have this import."""
    return any(is_within(item.target, name) for name in PURE)


def test_planners_import_only_pure_modules() -> None:
    """A plan depends on its arguments and on nothing else."""
    pure = {*PLANNERS, *CONFIGS, "tokenfabric.errors"}
    assert [
        f"{name}:{item.line} imports {item.target}"
        for path, name in modules().items()
        if name in pure
        for item in imports_of(path)
        if not is_pure(item)
    ] == []


@pytest.mark.parametrize(
    "target", ["torch", "torch.nn", "os.environ", "time.monotonic", "tokenfabric.world.World"]
)
def test_impure_import_is_found(target: str) -> None:
    """The rule can say no."""
    assert not is_pure(Import(target, 1, "import"))
