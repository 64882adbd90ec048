"""The modules of the packages can be understood one after the other, from the bottom."""

import graphlib

import pytest

from tests.house.tree import imports_of, modules


def find_cycle(graph: dict[str, set[str]]) -> list[str]:
    """Return the names along one cycle of `name -> what it imports`, or nothing."""
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return list(error.args[1])
    return []


def test_import_graph_has_no_cycle() -> None:
    """Imports that run when a module is imported form no cycle, whatever is imported first."""
    paths = {name: path for path, name in modules().items()}
    graph = {}
    for name, path in paths.items():
        eager = [item.target for item in imports_of(path) if item.when == "import"]
        # `from a.b import c` needs a.b.c where that is a module, a.b otherwise.
        needed = {target if target in paths else target.rpartition(".")[0] for target in eager}
        graph[name] = (needed & paths.keys()) - {name}
    assert find_cycle(graph) == []


@pytest.mark.parametrize("graph", [{"a": {"b"}, "b": {"a"}}, {"a": {"b"}, "b": {"c"}, "c": {"a"}}])
def test_cycle_is_found(graph: dict[str, set[str]]) -> None:
    """The search can find one."""
    assert set(find_cycle(graph)) == set(graph)
