"""Planners are pure: the standard library without I/O, clocks and chance, and each other."""

import sys

import pytest

from tests.house.tree import Import, imports_of, is_within, modules

RING_PLANNERS = (
    "blocks capability check check_coverage choose cost decode_plan direction explain inputs "
    "kernels lower mask movement partition plan positions problem push rank_plan reach relay "
    "results runs tiles topology"
)
PLANNERS = (
    "tokenfabric.placement",
    "tokenfabric.placement_advice",
    "tokenfabric.schedule",
    "tokenweave.plan",
    "tokenweave.host_plan",
    "tokenweave.shard_plan",
    "tokenweave.waves",
    "launch.doctor.cpu_paths",
    "launch.doctor.execution_path",
    "launch.doctor.findings",
    "launch.doctor.gpu_paths",
    "launch.doctor.machine",
    "launch.doctor.model_paths",
    "launch.doctor.requirements",
    "launch.job",
    *(f"tokenring.{name}" for name in RING_PLANNERS.split()),
)
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
