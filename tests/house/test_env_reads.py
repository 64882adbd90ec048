"""The environment is read in one place, tokenfabric/env.py, and written in none."""

import ast
from pathlib import Path

import pytest

from tests.house.tree import PACKAGES, ROOT, python_files

NAMES = {"environ", "environb", "getenv", "getenvb", "putenv", "unsetenv"}
ALLOWED = {
    "tokenfabric/env.py": "the one reader",
    "launch/ray/rank_actor.py": "sets the environment of the rank that it is",
    "launch/torchrun.py": "sets the variables that torch's launcher hands to the ranks",
    "tokenfabric/testing/rank_process.py": "sets the environment of the rank that it is",
}


def uses(source: str) -> list[int]:
    """Return the lines that touch the environment."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and node.attr in NAMES:
            found.append(node.lineno)
        if isinstance(node, ast.ImportFrom) and node.module == "os":
            found += [node.lineno for alias in node.names if alias.name in NAMES]
    return found


def test_environment_is_read_in_one_place() -> None:
    """Everything else is told by an argument."""
    found = {
        str(path.relative_to(ROOT)): lines
        for path in python_files(*PACKAGES)
        if (lines := uses(path.read_text()))
    }
    assert {name: lines for name, lines in found.items() if name not in ALLOWED} == {}


def test_allowed_files_still_need_it() -> None:
    """The list of exceptions does not outlive its reasons."""
    existing = [ROOT / name for name in ALLOWED if (ROOT / name).is_file()]
    assert [str(path) for path in existing if not uses(Path(path).read_text())] == []


@pytest.mark.parametrize(
    "source",
    [
        "import os\nos.environ['RANK']",
        "from os import environ",
        "import os as o\no.getenv('RANK')",
        "def f():\n    import os\n    os.environ.update(RANK='0')",
    ],
)
def test_use_is_found(source: str) -> None:
    """Reading and writing, by any spelling, at any depth."""
    assert uses(source)
