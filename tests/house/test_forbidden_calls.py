"""Calls that no package makes: printing, and anything that runs what a peer or a file sends."""

import ast

import pytest

from tests.house.tree import PACKAGES, ROOT, python_files

MODULES = {"pickle", "cloudpickle", "dill", "marshal", "shelve"}
# Collectives that unpickle what other ranks send.
ATTRIBUTES = {
    "all_gather_object", "gather_object", "broadcast_object_list", "scatter_object_list",
    "send_object_list", "recv_object_list",
}  # fmt: skip
CALLS = {"print", "pprint", "breakpoint", "eval", "exec", "torch.load", "os.system"}
ALLOWED = {
    ("launch/training/checkpoint_index.py", "pickle"): "an unpickler that calls nothing unknown",
    ("tokenfabric/testing/rank_group.py", "pickle"): "a test and the ranks that it started",
    ("tokenfabric/testing/rank_process.py", "pickle"): "a test and the ranks that it started",
    ("tokenfabric/testing/spawn.py", "pickle"): "a test and the ranks that it started",
    ("tests/unit/test_training_checkpoint_index.py", "pickle"): "makes what must be refused",
}


def forbidden(source: str) -> list[str]:
    """Return the forbidden names that a file uses."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name in MODULES]
        elif isinstance(node, ast.ImportFrom):
            names = {node.module, *(alias.name for alias in node.names)}
            found += sorted(name for name in names if name in MODULES | ATTRIBUTES)
        elif isinstance(node, ast.Attribute) and node.attr in ATTRIBUTES:
            found.append(node.attr)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in CALLS:
            found.append(ast.unparse(node.func))
    return found


@pytest.mark.parametrize("folder", [*PACKAGES, "tests", "benchmarks"])
def test_folder_makes_no_forbidden_call(folder: str) -> None:
    """Every exception is in the table, with its reason."""
    files = {str(path.relative_to(ROOT)): path for path in python_files(folder)}
    used = [(name, what) for name, path in files.items() for what in forbidden(path.read_text())]
    assert [use for use in used if use not in ALLOWED] == []


SEEDED = (
    "print('x')", "import pickle", "from pickle import loads", "torch.load(path)",
    "dist.all_gather_object(out, x)", "from torch.distributed import gather_object",
)  # fmt: skip


@pytest.mark.parametrize("source", SEEDED)
def test_forbidden_call_is_found(source: str) -> None:
    """The rule can say no."""
    assert forbidden(source)
