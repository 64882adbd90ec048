"""What an install brings: every package with its types, and never a torch."""

import contextlib
import importlib
import re
import tomllib
from importlib import metadata

import pytest

from tests.house.tree import PACKAGES, ROOT

CONFIG = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = CONFIG["project"]


def name_of(requirement: str) -> str:
    """Return the normalized name of the distribution that a requirement asks for."""
    return re.split(r"[^\w.-]", requirement, maxsplit=1)[0].lower().replace("_", "-")


def installs(requirements: list[str]) -> set[str]:
    """Return what pip would install for them, as far as what is installed here can tell."""
    names, todo = set(), [name_of(line) for line in requirements]
    while todo:
        name = todo.pop()
        if name not in names:
            names.add(name)
            with contextlib.suppress(metadata.PackageNotFoundError):
                lines = metadata.requires(name) or []
                todo += [name_of(line) for line in lines if "extra ==" not in line]
    return names


def test_no_install_brings_torch() -> None:
    """Which torch it is, is the user's choice; pip must not fetch one, nor replace it."""
    extras = [line for lines in PROJECT["optional-dependencies"].values() for line in lines]
    assert "torch" not in installs([*PROJECT["dependencies"], *extras])
    assert "torch" in installs(["Torch>=2.11"])
    assert "sympy" in installs(["torch"])


@pytest.mark.parametrize("package", PACKAGES)
def test_package_ships_its_types(package: str) -> None:
    """py.typed is there and listed, so that users' type checkers look inside."""
    assert (ROOT / package / "py.typed").is_file()
    assert "py.typed" in CONFIG["tool"]["setuptools"]["package-data"][package]


@pytest.mark.parametrize("script", PROJECT["scripts"].values())
def test_console_script_exists(script: str) -> None:
    """The command that pip writes finds its function."""
    module, _, function = script.partition(":")
    assert callable(getattr(importlib.import_module(module), function))


def test_every_folder_of_modules_is_a_package() -> None:
    """A folder without __init__.py would be left out of the wheel."""
    folders = {path.parent for name in PACKAGES for path in (ROOT / name).rglob("*.py")}
    assert [str(folder) for folder in folders if not (folder / "__init__.py").is_file()] == []
