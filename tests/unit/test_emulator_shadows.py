"""The emulator's shadows of token/ptx stand for all of the real headers, function by function."""

import re
from pathlib import Path

import pytest

CSRC = Path(__file__).resolve().parents[2] / "csrc"
REAL = CSRC / "include" / "token" / "ptx"
SHADOWS = CSRC / "tests" / "emulator" / "include" / "token" / "ptx"
COMMENT = re.compile(r"//[^\n]*")
FUNCTION = re.compile(r"^(?:TOKEN_DEVICE|inline)\s+[\w:&* ]*?\b(\w+)\(([^)]*)\)\s*\{", re.MULTILINE)
MACRO_MADE = re.compile(r"^TOKEN_SHADOW_(?:LOAD|STORE)\((\w+),", re.MULTILINE)
# Compiled by g++ as they are: no instruction in them.
NOT_SHADOWED = {"opaque.hpp", "vector_types.hpp"}


def functions(header: Path) -> set[str]:
    """Return the names of the functions that a header defines."""
    code = COMMENT.sub("", header.read_text())
    return {match.group(1) for match in FUNCTION.finditer(code)} | set(MACRO_MADE.findall(code))


def test_every_header_has_its_shadow() -> None:
    """A header without one would put an instruction into a kernel that g++ compiles."""
    assert {path.name for path in REAL.glob("*.hpp")} - NOT_SHADOWED == {
        path.name for path in SHADOWS.glob("*.hpp")
    }


@pytest.mark.parametrize("header", sorted(path.name for path in SHADOWS.glob("*.hpp")))
def test_shadow_has_every_function(header: str) -> None:
    """The same names, so that a kernel compiles against either."""
    real = functions(REAL / header)
    assert real
    assert real <= functions(SHADOWS / header)
