"""No test is left out unseen: tools skip folders by name, and `dist` is on most of their lists."""

import shutil
import subprocess
from fnmatch import fnmatch
from pathlib import Path

import pytest

from tests.house.tree import ROOT

FOLDERS = sorted(
    path for path in (ROOT / "tests").iterdir() if path.is_dir() and path.name != "__pycache__"
)


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_pytest_enters_every_folder(folder: Path, request: pytest.FixtureRequest) -> None:
    """None of the patterns in `norecursedirs` is the name of a folder of tests."""
    patterns = request.config.getini("norecursedirs")
    assert [pattern for pattern in patterns if fnmatch(folder.name, pattern)] == []


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_git_keeps_every_folder(folder: Path) -> None:
    """A new file in it is not ignored."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    command = ["git", "check-ignore", "--quiet", str(folder / "test_new.py")]
    assert subprocess.run(command, cwd=ROOT).returncode == 1


def test_ruff_enters_every_folder() -> None:
    """Ruff's list of excluded folders is ours: its own has `dist`."""
    config = (ROOT / "pyproject.toml").read_text().partition("[tool.ruff]")[2]
    exclude = config.partition("\nexclude = [")[2].partition("]")[0]
    assert exclude
    assert [folder.name for folder in FOLDERS if f'"{folder.name}"' in exclude] == []
