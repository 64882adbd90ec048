"""Files stay small: 300 lines; up to 500 with a sentence in the file head that says why."""

from pathlib import Path

import pytest

from tests.house.tree import NATIVE_SUFFIXES, ROOT, text_files

LIMIT, HARD_LIMIT = 300, 500
HOUSE_LIMIT = 60
REASON = "One file because"
HEAD_LINES = 20
SOURCES = NATIVE_SUFFIXES | {".py", ".pyi", ".pml", ".inc"}


def complaint(path: Path, text: str) -> str | None:
    """Return what is wrong with the size of a file, or None."""
    lines = text.splitlines()
    has_reason = any(REASON in line for line in lines[:HEAD_LINES])
    limit = HARD_LIMIT if has_reason else LIMIT
    if path.parent == ROOT / "tests" / "house" and path.name.startswith("test_"):
        limit = HOUSE_LIMIT
    if path == ROOT / "setup.py":
        limit = 99
    if len(lines) <= limit:
        return None
    return f"{path.relative_to(ROOT)}: {len(lines)} lines, at most {limit}"


def test_files_are_within_their_budget() -> None:
    """No source file of the repository is over its limit."""
    sources = [path for path in text_files() if path.suffix in SOURCES]
    found = [complaint(path, path.read_text()) for path in sources]
    assert [line for line in found if line] == []


@pytest.mark.parametrize(
    ("name", "head", "num_lines", "is_accepted"),
    [
        ("tokenfabric/a.py", "", 300, True),
        ("tokenfabric/a.py", "", 301, False),
        ("csrc/a.cu", f"// {REASON} both phases share their registers.", 500, True),
        ("csrc/a.cu", f"// {REASON} both phases share their registers.", 501, False),
        ("csrc/a.cu", "\n" * HEAD_LINES + f"// {REASON} too late in the file.", 400, False),
        ("tests/house/test_a.py", "", 61, False),
    ],
)
def test_budget_is_enforced(name: str, head: str, num_lines: int, is_accepted: bool) -> None:
    """The limits are the ones that the house promises."""
    text = "\n".join([*head.split("\n"), *["x"] * num_lines][:num_lines])
    assert (complaint(ROOT / name, text) is None) == is_accepted
