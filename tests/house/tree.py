"""What the house tests read: the files of the repository, and what a Python file imports."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = tuple(
    name
    for name in ("tokenfabric", "tokenweave", "tokenring", "launch")
    if (ROOT / name / "__init__.py").is_file()
)
NATIVE_SUFFIXES = frozenset({".hpp", ".cpp", ".h", ".cuh", ".cu"})
_FOLDERS = (*PACKAGES, "csrc", "tests", "benchmarks", "examples", "docs", "protocols", ".ci")


@cache
def text_files() -> tuple[Path, ...]:
    """Return every file of the repository that people wrote, build products left out."""
    files = [path for path in ROOT.iterdir() if path.is_file()]
    for folder in _FOLDERS:
        files += [path for path in (ROOT / folder).rglob("*") if path.is_file()]
    built = {".so", ".pyc"}
    return tuple(sorted(path for path in files if path.suffix not in built))


def python_files(*folders: str) -> tuple[Path, ...]:
    """Return the Python files below the given top-level folders."""
    return tuple(
        path
        for path in text_files()
        if path.suffix == ".py" and path.relative_to(ROOT).parts[0] in folders
    )


def native_files() -> tuple[Path, ...]:
    """Return the C++ and CUDA files."""
    return tuple(path for path in text_files() if path.suffix in NATIVE_SUFFIXES)


def module_name(path: Path) -> str:
    """Return the dotted name of a file, `pkg` for `pkg/__init__.py`."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def modules() -> dict[Path, str]:
    """Return the dotted name of every module of the packages."""
    return {path: module_name(path) for path in python_files(*PACKAGES)}


When = Literal["import", "call", "typing"]


@dataclass(frozen=True)
class Import:
    """One imported name: `from a.b import c` is `a.b.c`, whether c is a module or not."""

    target: str
    line: int
    when: When
    """Runs when the module is imported, when a function is called, or for type checkers only."""


def is_within(name: str, prefix: str) -> bool:
    """Return whether a dotted name is `prefix` or lies below it."""
    return name == prefix or name.startswith(f"{prefix}.")


def imports_of(path: Path) -> list[Import]:
    """Return the imports of a file in order, relative ones made absolute."""
    module = module_name(path)
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    return list(_walk(ast.parse(path.read_text()), package, "import"))


def _walk(node: ast.AST, package: str, when: When) -> Iterator[Import]:
    if isinstance(node, ast.Import):
        for alias in node.names:
            yield Import(alias.name, node.lineno, when)
    elif isinstance(node, ast.ImportFrom):
        base = package.rsplit(".", node.level - 1)[0] if node.level else ""
        base = ".".join(filter(None, (base, node.module)))
        for alias in node.names:
            yield Import(f"{base}.{alias.name}", node.lineno, when)
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
        when = "call"
    elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
        when = "typing"
    for child in ast.iter_child_nodes(node):
        yield from _walk(child, package, when)
